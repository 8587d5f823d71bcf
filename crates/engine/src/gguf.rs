//! Reading a GGUF file: typed metadata and raw tensor bytes.
//!
//! For: one place that knows candle's GGUF reader.
//! Must never: trust the file: every length and type is checked and reported by name.
//! Relies on: `candle_core::quantized::gguf_file`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device};

use crate::error::LoadError;
use crate::kernels::blocks::Format;
use crate::kernels::memory::Arena;
use crate::kernels::pack::PackedMatrix;

/// An open GGUF file.
pub(crate) struct Gguf {
    content: Content,
    reader: BufReader<File>,
    /// Where matrices are packed to.
    arena: Arena,
}

impl Gguf {
    /// Opens the file and reads its metadata.
    pub(crate) fn open(path: &Path) -> Result<Gguf, LoadError> {
        let name = path.display().to_string();
        let io = |source| LoadError::Io { path: name.clone(), source };
        let mut reader = BufReader::new(File::open(path).map_err(io)?);
        let content = Content::read(&mut reader)
            .map_err(|e| LoadError::Format { path: name.clone(), reason: e.to_string() })?;
        Ok(Gguf { content, reader, arena: Arena::default() })
    }

    /// The raw value of a key.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// A string that need not be there.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.value(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// A boolean that need not be there.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        match self.value(key) {
            Some(Value::Bool(flag)) => Some(*flag),
            _ => None,
        }
    }

    /// A non-negative integer of any width that need not be there.
    pub(crate) fn integer(&self, key: &str) -> Option<u64> {
        self.value(key).and_then(integer)
    }

    /// A number that need not be there.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            Value::F32(x) => Some(f64::from(*x)),
            Value::F64(x) => Some(*x),
            other => integer(other).map(|x| x as f64),
        }
    }

    /// A list of strings that must be there.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<&str>, LoadError> {
        let bad = |reason: &str| LoadError::Metadata { key: key.into(), reason: reason.into() };
        let Some(Value::Array(items)) = self.value(key) else {
            return Err(bad("a list of strings is needed"));
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Value::String(text) => texts.push(text.as_str()),
                _ => return Err(bad("holds something else than strings")),
            }
        }
        Ok(texts)
    }

    /// A list of integers that need not be there.
    pub(crate) fn integers(&self, key: &str) -> Option<Vec<u64>> {
        match self.value(key)? {
            Value::Array(items) => items.iter().map(integer).collect(),
            _ => None,
        }
    }

    /// Whether the file has the tensor.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// Weights in all tensors.
    pub(crate) fn parameter_count(&self) -> u64 {
        let infos = self.content.tensor_infos.values();
        infos.map(|info| info.shape.elem_count() as u64).sum()
    }

    /// The quantisation that most weights of the file have.
    pub(crate) fn quantisation(&self) -> String {
        let mut counts = std::collections::BTreeMap::new();
        for info in self.content.tensor_infos.values() {
            *counts.entry(format!("{:?}", info.ggml_dtype)).or_insert(0) += info.shape.elem_count();
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        most.map(|(name, _)| name).unwrap_or_default()
    }

    /// An f32 vector of `len` values (norm weights, rotary factors).
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.read(name)?;
        let values = (|| {
            let tensor = tensor.dequantize(&Device::Cpu)?.to_dtype(DType::F32)?;
            tensor.flatten_all()?.to_vec1::<f32>()
        })();
        let bad = |reason| LoadError::Tensor { tensor: name.into(), reason };
        let values = values.map_err(|e| bad(e.to_string()))?;
        match values.len() == len {
            true => Ok(values),
            false => Err(bad(format!("{len} values are needed, {} are there", values.len()))),
        }
    }

    /// A quantised matrix of `rows` rows of `cols` weights, packed.
    pub(crate) fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<PackedMatrix, LoadError> {
        let tensor = self.read(name)?;
        let bad = |reason| LoadError::Tensor { tensor: name.into(), reason };
        if tensor.shape().dims() != [rows, cols] {
            let found = tensor.shape().dims();
            return Err(bad(format!("[{rows}, {cols}] is needed, {found:?} is there")));
        }
        let format = match tensor.dtype() {
            GgmlDType::Q4_0 => Format::Q4_0,
            GgmlDType::Q4_1 => Format::Q4_1,
            GgmlDType::Q5_0 => Format::Q5_0,
            GgmlDType::Q5_1 => Format::Q5_1,
            GgmlDType::Q8_0 => Format::Q8_0,
            GgmlDType::Q4K => Format::Q4K,
            GgmlDType::Q5K => Format::Q5K,
            GgmlDType::Q6K => Format::Q6K,
            GgmlDType::F16 => Format::F16,
            GgmlDType::BF16 => Format::Bf16,
            GgmlDType::F32 => Format::F32,
            other => {
                let found = format!("{other:?}");
                return Err(LoadError::UnsupportedQuantisation { tensor: name.into(), found });
            }
        };
        let raw = tensor.data().map_err(|e| bad(e.to_string()))?;
        let packed = PackedMatrix::pack(format, (rows, cols), &raw, &self.arena);
        packed.ok_or_else(|| bad(format!("{} bytes are not {rows} x {cols}", raw.len())))
    }

    fn read(&mut self, name: &str) -> Result<QTensor, LoadError> {
        let tensor = self.content.tensor(&mut self.reader, name, &Device::Cpu);
        tensor.map_err(|e| LoadError::Tensor { tensor: name.into(), reason: e.to_string() })
    }
}

fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::U8(x) => Some(u64::from(*x)),
        Value::U16(x) => Some(u64::from(*x)),
        Value::U32(x) => Some(u64::from(*x)),
        Value::U64(x) => Some(*x),
        Value::I8(x) => u64::try_from(*x).ok(),
        Value::I16(x) => u64::try_from(*x).ok(),
        Value::I32(x) => u64::try_from(*x).ok(),
        Value::I64(x) => u64::try_from(*x).ok(),
        _ => None,
    }
}
