//! Safetensors files: a JSON header and plain tensors behind it, read in place.
//!
//! For: weights as Hugging Face keeps them, in one file or in several with an index.
//! Must never: trust the file: header, offsets and sizes are compared with each other and with
//! the file before anything is read by them; open a file outside of the model's folder.
//! Relies on: the safetensors format (huggingface/safetensors, "Format").

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserialize, Visitor};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess};

use super::mmap::{Mapped, Progress};
use super::reader::{Reader, shown};
use super::small::read_small;
use super::stored::Stored;
use super::tensor::{DIMS_MAX, Order, Tensor, missing, most_stored, span};
use crate::error::LoadError;
use crate::kernels::pack::PackedMatrix;

/// Longest header, bytes (the format's own limit).
const HEADER_MAX: u64 = 100_000_000;
/// Largest index file, bytes: the largest models' have ten.
const INDEX_MAX: u64 = 64 << 20;
/// Most files of one model.
const SHARDS_MAX: usize = 4096;
/// Longest name of a tensor, bytes.
const NAME_BYTES_MAX: usize = 512;

/// The tensors of a model.
pub(crate) struct Safetensors {
    files: Vec<Mapped>,
    /// Index of the file, and the tensor in it.
    tensors: BTreeMap<String, (usize, Tensor)>,
}

impl Safetensors {
    /// Maps the weights of a folder and checks their headers: `model.safetensors`, else the
    /// files that `model.safetensors.index.json` names.
    pub(crate) fn open(folder: &Path, progress: &Arc<Progress>) -> Result<Safetensors, LoadError> {
        let mut all = Safetensors { files: Vec::new(), tensors: BTreeMap::new() };
        let single = folder.join("model.safetensors");
        if single.exists() {
            all.add(Mapped::open(&single, progress)?)?;
            return Ok(all);
        }
        let path = folder.join("model.safetensors.index.json");
        let index = read_small(&path, INDEX_MAX)?;
        let index: Index = serde_json::from_slice(&index).map_err(|error| LoadError::Format {
            path: path.display().to_string(),
            reason: shown(error.to_string().as_bytes()),
        })?;
        let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
        if names.is_empty() || names.len() > SHARDS_MAX {
            let reason = format!("it names {} files; 1 to {SHARDS_MAX} are read", names.len());
            return Err(LoadError::Format { path: path.display().to_string(), reason });
        }
        let mut places = BTreeMap::new();
        for name in names {
            if !is_plain_name(name) {
                let reason = format!("it names a file {:?}", shown(name.as_bytes()));
                return Err(LoadError::Format { path: path.display().to_string(), reason });
            }
            places.insert(name, all.files.len());
            all.add(Mapped::open(&folder.join(name), progress)?)?;
        }
        for (tensor, file) in &index.weight_map {
            let found = all.tensors.get(tensor).map(|(place, _)| *place);
            if found != places.get(file.as_str()).copied() {
                let reason = format!("is not in {} as the index says", shown(file.as_bytes()));
                return Err(LoadError::Tensor { tensor: shown(tensor.as_bytes()), reason });
            }
        }
        Ok(all)
    }

    /// The files, in the order of their names.
    pub(crate) fn files(&self) -> &[Mapped] {
        &self.files
    }

    /// Names of all tensors, in ascending order.
    pub(crate) fn tensor_names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Whether the tensor is there.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Weights in all tensors.
    pub(crate) fn parameter_count(&self) -> u64 {
        self.stored().map(Tensor::weights).fold(0, u64::saturating_add)
    }

    /// The type that most weights have.
    pub(crate) fn quantisation(&self) -> String {
        most_stored(self.stored()).into()
    }

    /// An f32 vector of `len` values.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let (file, tensor) = self.needed(name)?;
        tensor.vector(name, file, len)
    }

    /// A matrix of `rows` rows of `cols` weights, packed.
    pub(crate) fn matrix(
        &self,
        name: &str,
        shape: (usize, usize),
        order: Order,
    ) -> Result<PackedMatrix, LoadError> {
        let (file, tensor) = self.needed(name)?;
        tensor.matrix(name, file, (shape, order))
    }

    fn stored(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values().map(|(_, tensor)| tensor)
    }

    fn needed(&self, name: &str) -> Result<(&Mapped, &Tensor), LoadError> {
        let found = self.tensors.get(name);
        let found = found.and_then(|(file, tensor)| Some((self.files.get(*file)?, tensor)));
        found.ok_or_else(|| missing(name))
    }

    /// Takes a file's tensors in.
    fn add(&mut self, file: Mapped) -> Result<(), LoadError> {
        let place = self.files.len();
        for (name, tensor) in tensors(&file)? {
            match self.tensors.entry(name) {
                std::collections::btree_map::Entry::Vacant(free) => {
                    free.insert((place, tensor));
                }
                std::collections::btree_map::Entry::Occupied(taken) => {
                    let tensor = shown(taken.key().as_bytes());
                    let reason = "is in two files".into();
                    return Err(LoadError::Tensor { tensor, reason });
                }
            }
        }
        self.files.push(file);
        Ok(())
    }
}

/// Whether a name means a file in the folder and nothing else.
fn is_plain_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.ends_with(".safetensors") && !name.starts_with('.') && name.chars().all(is_plain)
}

/// The checked tensors of one file.
fn tensors(file: &Mapped) -> Result<Vec<(String, Tensor)>, LoadError> {
    let mut reader = Reader::new(file.bytes(), 0);
    let length = reader.u64().ok_or_else(|| file.refuse("it ends within the first 8 bytes"))?;
    let fits = length <= HEADER_MAX;
    let header = fits.then(|| reader.skip(length)).flatten().ok_or_else(|| {
        let left = reader.left();
        file.refuse(format!("a header of {length} bytes; {left} are there, {HEADER_MAX} allowed"))
    })?;
    let data = header.end;
    let header = file.bytes().get(header).unwrap_or_default();
    let Header(entries) = serde_json::from_slice(header)
        .map_err(|error| file.refuse(format!("header: {}", shown(error.to_string().as_bytes()))))?;

    let mut tensors = Vec::new();
    for (name, entry) in entries {
        match entry.tensor().and_then(|mut tensor| {
            tensor.shift(data, file.bytes().len())?;
            Ok(tensor)
        }) {
            Ok(tensor) => tensors.push((name, tensor)),
            Err(reason) => {
                return Err(LoadError::Tensor { tensor: shown(name.as_bytes()), reason });
            }
        }
    }
    // The format leaves no hole between tensors and nothing behind the last.
    tensors.sort_unstable_by_key(|(_, tensor)| (tensor.span.start, tensor.span.end));
    let mut end = data;
    for (name, tensor) in &tensors {
        if tensor.span.start != end {
            let reason = format!("begins at byte {}, not at {end}", tensor.span.start);
            return Err(LoadError::Tensor { tensor: shown(name.as_bytes()), reason });
        }
        end = tensor.span.end;
    }
    if end != file.bytes().len() {
        let reason = format!("the data end at byte {end} of {}", file.bytes().len());
        return Err(file.refuse(reason));
    }
    tensors.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    match tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        None => Ok(tensors),
        Some(pair) => {
            let tensor = shown(pair[0].0.as_bytes());
            Err(LoadError::Tensor { tensor, reason: "is there twice".into() })
        }
    }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// A header's tensors, as they stand there: a map type would drop the first of two namesakes.
struct Header(Vec<(String, Entry)>);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// The type's name; whether it is known is looked at where the tensor's name is.
struct Dtype(Result<Stored, String>);

/// Dimensions, outermost first; too many are counted and not kept.
struct Shape {
    dims: [u64; DIMS_MAX],
    rank: usize,
}

impl Entry {
    /// The tensor, with a span that counts from the data's beginning.
    fn tensor(self) -> Result<Tensor, String> {
        let stored = self.dtype.0?;
        let Shape { dims, rank } = self.shape;
        if rank > DIMS_MAX {
            return Err(format!("{rank} dimensions, {DIMS_MAX} are the most"));
        }
        let needed = Tensor::check(stored, dims.get(..rank).unwrap_or_default())?;
        let (start, end) = self.data_offsets;
        let place = span(start, Some(end)).filter(|_| end.checked_sub(start) == Some(needed));
        let span = place
            .ok_or_else(|| format!("offsets {start} to {end} for a tensor of {needed} bytes"))?;
        Ok(Tensor { stored, shape: dims, rank, span })
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if name.is_empty() || name.len() > NAME_BYTES_MAX {
                        let what = format!("a tensor's name of {} bytes", name.len());
                        return Err(A::Error::custom(what));
                    }
                    let entry = map.next_value::<Entry>().map_err(|error| {
                        A::Error::custom(format!("tensor {}: {error}", shown(name.as_bytes())))
                    })?;
                    entries.push((name, entry));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Dtype {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Dtype, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Dtype;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a type")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Dtype, E> {
                let unknown = || format!("type {:?} is unknown", shown(name.as_bytes()));
                Ok(Dtype(Stored::named(name).ok_or_else(unknown)))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shape, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Shape { dims: [1; DIMS_MAX], rank: 0 };
                while let Some(dim) = seq.next_element::<u64>()? {
                    if let Some(place) = shape.dims.get_mut(shape.rank) {
                        *place = dim;
                    }
                    shape.rank += 1;
                }
                Ok(shape)
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}
