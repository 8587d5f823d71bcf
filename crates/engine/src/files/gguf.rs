//! GGUF files: typed metadata and tensors, read in place.
//!
//! For: the whole of the format, versions 2 and 3, little-endian.
//! Must never: trust the file: whatever is damaged is refused by the name of its key or tensor,
//! before anything is allocated by a number of the file.
//! Relies on: the GGUF specification (ggml, `docs/gguf.md`).

use std::path::Path;
use std::sync::Arc;

use super::mmap::{Mapped, Progress};
use super::reader::{Reader, Span, shown};
use super::stored::Stored;
use super::tensor::{DIMS_MAX, Order, Tensor, missing, most_stored, span};
use super::value::{Kind, LIST, Value};
use crate::error::LoadError;
use crate::kernels::pack::PackedMatrix;

/// Most keys and tensors of a file: some 50 and 100,000 are the most that models have.
const KEYS_MAX: u64 = 1 << 16;
const TENSORS_MAX: u64 = 1 << 18;
/// Most elements of a list: the largest vocabularies have 300,000 tokens, and more merges.
const ITEMS_MAX: u64 = 1 << 22;
/// Longest key and tensor name, bytes (GGUF specification).
const KEY_BYTES_MAX: usize = 65_535;
const NAME_BYTES_MAX: usize = 64;
/// Of the data where the file names no other (GGUF specification).
const ALIGNMENT: u64 = 32;

/// An open GGUF file.
pub(crate) struct Gguf {
    file: Mapped,
    /// In the order of their keys.
    fields: Vec<Field>,
    /// In the order of their names.
    tensors: Vec<Named>,
}

struct Named {
    name: Span,
    tensor: Tensor,
}

struct Field {
    key: Span,
    form: Form,
    /// The bytes of the value, or of a list's elements.
    value: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    One(Kind),
    List(Kind, u64),
}

impl Gguf {
    /// Maps the file and checks its header: all keys, and that every tensor lies in the file, on
    /// its own bytes.
    pub(crate) fn map(path: &Path, progress: &Arc<Progress>) -> Result<Gguf, LoadError> {
        let file = Mapped::open(path, progress)?;
        let header = Header { file: &file, reader: Reader::new(file.bytes(), 0) };
        let (fields, tensors) = header.read()?;
        let gguf = Gguf { file, fields, tensors };
        match gguf.integer("split.count") {
            None | Some(0 | 1) => Ok(gguf),
            Some(parts) => Err(LoadError::Metadata {
                key: "split.count".into(),
                reason: format!("the file is one of {parts} parts; merge them into one file"),
            }),
        }
    }

    /// The file itself.
    pub(super) fn file(&self) -> &Mapped {
        &self.file
    }

    /// The value of a key.
    pub(crate) fn value(&self, key: &str) -> Option<Value<'_>> {
        let field = self.field(key)?;
        match field.form {
            Form::List(kind, count) => Some(Value::List(count, kind.name())),
            Form::One(kind) => kind.read(&mut Reader::new(self.file.bytes(), field.value.start)),
        }
    }

    /// A string that need not be there.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.value(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A boolean that need not be there.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        match self.value(key) {
            Some(Value::Flag(flag)) => Some(flag),
            _ => None,
        }
    }

    /// A non-negative integer of any width that need not be there.
    pub(crate) fn integer(&self, key: &str) -> Option<u64> {
        match self.value(key) {
            Some(Value::Integer(x)) => Some(x),
            _ => None,
        }
    }

    /// A number that need not be there.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            Value::Number(x) => Some(x),
            Value::Integer(x) => Some(x as f64),
            Value::Negative(x) => Some(x as f64),
            Value::Flag(_) | Value::Text(_) | Value::List(..) => None,
        }
    }

    /// A list of strings that must be there.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<&str>, LoadError> {
        let bad = |reason: &str| LoadError::Metadata { key: key.into(), reason: reason.into() };
        let items = self.items(key).ok_or_else(|| bad("a list of strings is needed"))?;
        let text = |item| match item {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(bad("holds something else than strings")),
        };
        items.map(text).collect()
    }

    /// A list of non-negative integers that need not be there.
    pub(crate) fn integers(&self, key: &str) -> Option<Vec<u64>> {
        let integer = |item| match item {
            Some(Value::Integer(x)) => Some(x),
            _ => None,
        };
        self.items(key)?.map(integer).collect()
    }

    /// A list of numbers that need not be there.
    pub(crate) fn numbers(&self, key: &str) -> Option<Vec<f32>> {
        let number = |item| match item {
            Some(Value::Number(x)) => Some(x as f32),
            _ => None,
        };
        self.items(key)?.map(number).collect()
    }

    /// Whether the file has the tensor.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.tensor(name).is_some()
    }

    /// Names of all tensors, in ascending order.
    pub(crate) fn tensor_names(&self) -> Vec<String> {
        let bytes = self.file.bytes();
        let of = |named: &Named| bytes.get(named.name.clone()).unwrap_or_default();
        self.tensors.iter().map(|named| String::from_utf8_lossy(of(named)).into_owned()).collect()
    }

    /// Weights in all tensors.
    pub(crate) fn parameter_count(&self) -> u64 {
        self.stored().map(Tensor::weights).fold(0, u64::saturating_add)
    }

    /// The quantisation that most weights of the file have.
    pub(crate) fn quantisation(&self) -> String {
        most_stored(self.stored()).into()
    }

    /// An f32 vector of `len` values (norm weights, rotary factors).
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        self.needed(name)?.vector(name, &self.file, len)
    }

    /// A matrix of `rows` rows of `cols` weights, packed.
    pub(crate) fn matrix(
        &self,
        name: &str,
        shape: (usize, usize),
        order: Order,
    ) -> Result<PackedMatrix, LoadError> {
        self.needed(name)?.matrix(name, &self.file, (shape, order))
    }

    fn field(&self, key: &str) -> Option<&Field> {
        let bytes = self.file.bytes();
        let of = |field: &Field| bytes.get(field.key.clone()).unwrap_or_default();
        let found = self.fields.binary_search_by(|field| of(field).cmp(key.as_bytes())).ok()?;
        self.fields.get(found)
    }

    /// The elements of a list, an element that can't be read as `None`.
    fn items(&self, key: &str) -> Option<impl Iterator<Item = Option<Value<'_>>>> {
        let field = self.field(key)?;
        let Form::List(kind, count) = field.form else {
            return None;
        };
        let mut reader = Reader::new(self.file.bytes(), field.value.start);
        Some((0..count).map(move |_| kind.read(&mut reader)))
    }

    fn tensor(&self, name: &str) -> Option<&Tensor> {
        let bytes = self.file.bytes();
        let of = |named: &Named| bytes.get(named.name.clone()).unwrap_or_default();
        let found = self.tensors.binary_search_by(|named| of(named).cmp(name.as_bytes())).ok()?;
        self.tensors.get(found).map(|named| &named.tensor)
    }

    fn stored(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter().map(|named| &named.tensor)
    }

    fn needed(&self, name: &str) -> Result<&Tensor, LoadError> {
        self.tensor(name).ok_or_else(|| missing(name))
    }
}

/// What is read of a header, and from where on.
struct Header<'a> {
    file: &'a Mapped,
    reader: Reader<'a>,
}

impl Header<'_> {
    fn read(mut self) -> Result<(Vec<Field>, Vec<Named>), LoadError> {
        let file = self.file;
        let (tensor_count, key_count) = self.counts()?;
        // Lists grow as entries are found to be there, never by the count that a file states.
        let mut fields = Vec::new();
        for nth in 0..key_count {
            fields.push(self.field(nth)?);
        }
        let key = |field: &Field| file.bytes().get(field.key.clone()).unwrap_or_default();
        fields.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        if let Some(pair) = fields.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
            let (key, reason) = (shown(key(&pair[0])), "is there twice".into());
            return Err(LoadError::Metadata { key, reason });
        }
        let alignment = self.alignment(&fields)?;
        let mut tensors = Vec::new();
        for nth in 0..tensor_count {
            tensors.push(self.tensor(nth, alignment)?);
        }
        self.place(&mut tensors, alignment)?;
        Ok((fields, tensors))
    }

    /// How many tensors and keys follow.
    fn counts(&mut self) -> Result<(u64, u64), LoadError> {
        let short = || self.file.refuse("it ends within the first 24 bytes");
        if self.reader.u32().ok_or_else(short)?.to_le_bytes() != *b"GGUF" {
            return Err(self.file.refuse("it does not begin with \"GGUF\""));
        }
        let version = self.reader.u32().ok_or_else(short)?;
        if !matches!(version, 2 | 3) {
            let what = match version.swap_bytes() {
                2 | 3 => "it is big-endian; little-endian files are read".into(),
                _ => format!("version {version}; versions 2 and 3 are read"),
            };
            return Err(self.file.refuse(what));
        }
        let tensors = self.reader.u64().ok_or_else(short)?;
        let keys = self.reader.u64().ok_or_else(short)?;
        // What the shortest key and tensor take: as many as that would need are in no such file.
        let left = self.reader.left() as u64;
        for (what, count, most) in [
            ("tensors", tensors, TENSORS_MAX.min(left / 24)),
            ("metadata keys", keys, KEYS_MAX.min(left / 13)),
        ] {
            if count > most {
                let reason = format!("{count} {what}; {most} are the most in {left} bytes");
                return Err(self.file.refuse(reason));
            }
        }
        Ok((tensors, keys))
    }

    fn field(&mut self, nth: u64) -> Result<Field, LoadError> {
        let file = self.file;
        let key = self
            .name(KEY_BYTES_MAX)
            .map_err(|why| file.refuse(format!("the name of metadata key {nth} {why}")))?;
        let bad = |reason: String| LoadError::Metadata {
            key: shown(file.bytes().get(key.clone()).unwrap_or_default()),
            reason,
        };
        let cut = || bad("ends beyond the file".into());
        let number = self.reader.u32().ok_or_else(cut)?;
        let unknown = |number: u32| bad(format!("value type {number} is unknown"));
        if number != LIST {
            let kind = Kind::numbered(number).ok_or_else(|| unknown(number))?;
            let value = self.values(kind, 1).map_err(bad)?;
            return Ok(Field { key, form: Form::One(kind), value });
        }
        let of = self.reader.u32().ok_or_else(cut)?;
        let count = self.reader.u64().ok_or_else(cut)?;
        if of == LIST {
            return Err(bad("a list of lists; no model needs one".into()));
        }
        let kind = Kind::numbered(of).ok_or_else(|| unknown(of))?;
        if count > ITEMS_MAX {
            return Err(bad(format!("a list of {count} elements; {ITEMS_MAX} are the most")));
        }
        let value = self.values(kind, count).map_err(bad)?;
        Ok(Field { key, form: Form::List(kind, count), value })
    }

    /// Steps over `count` values, looking at each that can be wrong in itself.
    fn values(&mut self, kind: Kind, count: u64) -> Result<Span, String> {
        let start = self.reader.at();
        let cut = || format!("{count} {} end beyond the file", kind.name());
        match kind.bytes() {
            Some(bytes) if kind != Kind::Bool => {
                let bytes = bytes.checked_mul(count).ok_or_else(cut)?;
                self.reader.skip(bytes).ok_or_else(cut)?;
            }
            Some(_) | None => {
                for _ in 0..count {
                    kind.read(&mut self.reader).ok_or_else(|| match kind {
                        Kind::Bool => "a boolean is missing, or neither 0 nor 1".to_string(),
                        _ => "a string ends beyond the file, or is no UTF-8".to_string(),
                    })?;
                }
            }
        }
        Ok(start..self.reader.at())
    }

    /// A name's place; what is wrong with it otherwise.
    fn name(&mut self, bytes_max: usize) -> Result<Span, String> {
        let span = self.reader.counted().ok_or("ends beyond the file")?;
        let name = self.file.bytes().get(span.clone()).unwrap_or_default();
        if name.is_empty() || name.len() > bytes_max {
            return Err(format!("has {} bytes; 1 to {bytes_max} are allowed", name.len()));
        }
        match std::str::from_utf8(name) {
            Ok(_) => Ok(span),
            Err(_) => Err(format!("is no UTF-8: {}", shown(name))),
        }
    }

    fn alignment(&self, fields: &[Field]) -> Result<u64, LoadError> {
        const KEY: &str = "general.alignment";
        let bytes = self.file.bytes();
        let is_it = |field: &&Field| bytes.get(field.key.clone()) == Some(KEY.as_bytes());
        let Some(field) = fields.iter().find(is_it) else {
            return Ok(ALIGNMENT);
        };
        let value = match field.form {
            Form::One(Kind::U32) => Reader::new(bytes, field.value.start).u32(),
            Form::One(_) | Form::List(..) => None,
        };
        // The specification asks for a multiple of eight, ggml for a power of two; a page of
        // 64 KiB is the largest that makes sense.
        let fits = |x: &u32| x.is_power_of_two() && (8..=1 << 16).contains(x);
        value.filter(fits).map(u64::from).ok_or_else(|| LoadError::Metadata {
            key: KEY.into(),
            reason: "a u32 power of two from 8 to 65536 is needed".into(),
        })
    }

    /// A tensor's type and shape; its span begins at its offset into the data.
    fn tensor(&mut self, nth: u64, alignment: u64) -> Result<Named, LoadError> {
        let file = self.file;
        let name = self
            .name(NAME_BYTES_MAX)
            .map_err(|why| file.refuse(format!("the name of tensor {nth} {why}")))?;
        let bad = |reason: String| LoadError::Tensor {
            tensor: shown(file.bytes().get(name.clone()).unwrap_or_default()),
            reason,
        };
        let cut = || bad("its description ends beyond the file".into());
        let rank = self.reader.u32().ok_or_else(cut)?;
        let rank = usize::try_from(rank).ok().filter(|rank| *rank <= DIMS_MAX);
        let rank = rank.ok_or_else(|| bad(format!("more than {DIMS_MAX} dimensions")))?;
        let mut shape = [1; DIMS_MAX];
        // The file has the innermost dimension first.
        for dim in shape.iter_mut().take(rank).rev() {
            *dim = self.reader.u64().ok_or_else(cut)?;
        }
        let number = self.reader.u32().ok_or_else(cut)?;
        let stored = Stored::numbered(number);
        let stored = stored.ok_or_else(|| bad(format!("ggml type {number} is unknown")))?;
        let offset = self.reader.u64().ok_or_else(cut)?;
        if !offset.is_multiple_of(alignment) {
            return Err(bad(format!("offset {offset} is no multiple of {alignment}")));
        }
        let bytes = Tensor::check(stored, shape.get(..rank).unwrap_or_default()).map_err(bad)?;
        let span = span(offset, offset.checked_add(bytes));
        let span = span.ok_or_else(|| bad(format!("{bytes} bytes at {offset} end beyond 2^64")))?;
        Ok(Named { name, tensor: Tensor { stored, shape, rank, span } })
    }

    /// Moves the tensors to where they are in the file; sorts them by name.
    fn place(&self, tensors: &mut [Named], alignment: u64) -> Result<(), LoadError> {
        let bytes = self.file.bytes();
        let name = |named: &Named| bytes.get(named.name.clone()).unwrap_or_default();
        let bad =
            |named: &Named, reason| Err(LoadError::Tensor { tensor: shown(name(named)), reason });
        let data = self.reader.at().next_multiple_of(alignment as usize);
        for named in tensors.iter_mut() {
            if let Err(reason) = named.tensor.shift(data, bytes.len()) {
                return bad(named, reason);
            }
        }
        tensors.sort_unstable_by_key(|named| named.tensor.span.start);
        let overlap = |pair: &&[Named]| pair[0].tensor.span.end > pair[1].tensor.span.start;
        if let Some(pair) = tensors.windows(2).find(overlap) {
            return bad(&pair[1], format!("lies on bytes of {}", shown(name(&pair[0]))));
        }
        tensors.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        match tensors.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
            None => Ok(()),
            Some(pair) => bad(&pair[1], "is there twice".into()),
        }
    }
}
