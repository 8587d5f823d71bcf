//! One tensor of a mapped file, and what the engine makes of it.
//!
//! For: shapes and types of either file format, turned into packed matrices and f32 vectors.
//! Must never: allocate for a tensor whose bytes are not all in the file.
//! Relies on: the format's reader having compared `span` with type, shape and file size.

use super::mmap::Mapped;
use super::reader::Span;
use super::stored::{Stored, floats};
use crate::error::LoadError;
use crate::kernels::pack::PackedMatrix;

/// Most dimensions of a tensor (ggml's `GGML_MAX_DIMS`).
pub(super) const DIMS_MAX: usize = 4;

/// In which order a matrix's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Row after row.
    RowsFirst,
    /// Column after column: it is turned before it is packed.
    ColsFirst,
}

/// Where a tensor lies and how it is stored.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) stored: Stored,
    /// Outermost first: `[rows, cols]` of a matrix. The first `rank` count.
    pub(super) shape: [u64; DIMS_MAX],
    pub(super) rank: usize,
    pub(super) span: Span,
}

impl Tensor {
    /// Bytes of a tensor of this type and shape, outermost dimension first; the reason, where
    /// there is no such tensor.
    pub(super) fn check(stored: Stored, shape: &[u64]) -> Result<u64, String> {
        if shape.len() > DIMS_MAX {
            return Err(format!("{} dimensions, {DIMS_MAX} are the most", shape.len()));
        }
        if shape.contains(&0) {
            return Err(format!("a dimension of 0 in {shape:?}"));
        }
        let (cols, outer) = match shape.split_last() {
            Some((cols, outer)) => (*cols, outer),
            None => (1, shape),
        };
        let rows = outer.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let bytes = rows.and_then(|rows| {
            // The number of weights is counted with too, so it has to fit as well.
            rows.checked_mul(cols).and_then(|_| stored.bytes(cols, rows))
        });
        bytes.ok_or_else(|| {
            let (name, block) = (stored.name, stored.block_weights);
            format!("{shape:?} of {name} is too large, or a row is no multiple of {block}")
        })
    }

    /// Moves a span that counts from `data`, where the file's data begin, to its place in the
    /// file; the reason, where it ends beyond `length`.
    pub(super) fn shift(&mut self, data: usize, length: usize) -> Result<(), String> {
        let Span { start, end } = self.span;
        match start.checked_add(data).zip(end.checked_add(data)) {
            Some((start, end)) if start <= end && end <= length => {
                self.span = start..end;
                Ok(())
            }
            _ => Err(format!(
                "data from {start} to {end} end beyond the file of {length} bytes, whose data \
                 begin at {data}"
            )),
        }
    }

    pub(super) fn shape(&self) -> &[u64] {
        self.shape.get(..self.rank).unwrap_or(&self.shape)
    }

    /// Weights in it.
    pub(super) fn weights(&self) -> u64 {
        self.shape().iter().product()
    }

    /// A matrix of `rows` rows of `cols` weights, packed. Stored column by column it has the
    /// shape `[cols, rows]` and weights that are not in blocks.
    pub(super) fn matrix(
        &self,
        name: &str,
        file: &Mapped,
        ((rows, cols), order): ((usize, usize), Order),
    ) -> Result<PackedMatrix, LoadError> {
        let raw = file.bytes().get(self.span.clone()).unwrap_or_default();
        if order == Order::RowsFirst {
            self.check_shape(name, [rows, cols])?;
            return self.pack(name, file, (rows, cols), raw);
        }
        self.check_shape(name, [cols, rows])?;
        if self.stored.block_weights > 1 {
            let found = self.stored.name.into();
            return Err(LoadError::UnsupportedQuantisation { tensor: name.into(), found });
        }
        let turned = turned(raw, (rows, cols), self.stored.block_bytes as usize);
        self.pack(name, file, (rows, cols), &turned)
    }

    fn check_shape(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<(), LoadError> {
        if self.shape() == [rows as u64, cols as u64] {
            return Ok(());
        }
        let reason = format!("[{rows}, {cols}] is needed, {:?} is there", self.shape());
        Err(LoadError::Tensor { tensor: name.into(), reason })
    }

    /// Packs `raw`, the tensor's bytes or what was made of them, which are not read again.
    fn pack(
        &self,
        name: &str,
        file: &Mapped,
        (rows, cols): (usize, usize),
        raw: &[u8],
    ) -> Result<PackedMatrix, LoadError> {
        let Some(format) = self.stored.format else {
            let found = self.stored.name.into();
            return Err(LoadError::UnsupportedQuantisation { tensor: name.into(), found });
        };
        let packed = PackedMatrix::pack(format, (rows, cols), raw, file.arena());
        file.finish(self.span.clone());
        packed.ok_or_else(|| {
            let reason = format!("{} bytes are not {rows} x {cols}", raw.len());
            LoadError::Tensor { tensor: name.into(), reason }
        })
    }

    /// A vector of `len` values as f32, whatever its shape.
    pub(super) fn vector(
        &self,
        name: &str,
        file: &Mapped,
        len: usize,
    ) -> Result<Vec<f32>, LoadError> {
        let bad = |reason| LoadError::Tensor { tensor: name.into(), reason };
        if self.weights() != len as u64 {
            return Err(bad(format!("{len} values are needed, {} are there", self.weights())));
        }
        let raw = file.bytes().get(self.span.clone()).unwrap_or_default();
        let values = floats(self.stored, raw);
        file.finish(self.span.clone());
        values.ok_or_else(|| {
            let found = self.stored.name.into();
            LoadError::UnsupportedQuantisation { tensor: name.into(), found }
        })
    }
}

/// `rows` rows of `cols` values of `size` bytes, of `raw`, which has them column by column.
pub(crate) fn turned(raw: &[u8], (rows, cols): (usize, usize), size: usize) -> Vec<u8> {
    /// Rows that are written side by side: what is read of a column is about a cache line.
    const TOGETHER: usize = 16;
    let mut turned = vec![0; raw.len()];
    for first in (0..rows).step_by(TOGETHER) {
        for (col, column) in raw.chunks_exact(rows * size).enumerate() {
            for row in first..rows.min(first + TOGETHER) {
                let value = &column[row * size..(row + 1) * size];
                turned[(row * cols + col) * size..][..size].copy_from_slice(value);
            }
        }
    }
    turned
}

/// The type that most weights of the tensors have.
pub(super) fn most_stored<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> &'static str {
    let mut counts = std::collections::BTreeMap::new();
    for tensor in tensors {
        let count: &mut u64 = counts.entry(tensor.stored.name).or_default();
        *count = count.saturating_add(tensor.weights());
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map_or("", |(name, _)| name)
}

/// A span of file offsets; `None` beyond what can be addressed.
pub(super) fn span(start: u64, end: Option<u64>) -> Option<Span> {
    Some(usize::try_from(start).ok()?..usize::try_from(end?).ok()?)
}

/// A tensor that is needed is not in the file.
pub(super) fn missing(name: &str) -> LoadError {
    LoadError::Tensor { tensor: name.into(), reason: "is missing".into() }
}
