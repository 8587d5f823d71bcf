//! Values of a GGUF file's metadata.
//!
//! For: the types that the format knows, each read from its own bytes.
//! Must never: copy a text, or show one of any length in an error.
//! Relies on: the GGUF specification (`gguf_metadata_value_type`).

use super::reader::{Reader, shown};

/// A key's value.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    /// Integers of any width, those below zero apart.
    Integer(u64),
    Negative(i64),
    Number(f64),
    Flag(bool),
    Text(&'a str),
    /// How many elements, and of which type.
    List(u64, &'static str),
}

/// For error messages: what a file says may be a megabyte long.
impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Integer(x) => write!(f, "{x}"),
            Value::Negative(x) => write!(f, "{x}"),
            Value::Number(x) => write!(f, "{x}"),
            Value::Flag(x) => write!(f, "{x}"),
            Value::Text(text) => write!(f, "{:?}", shown(text.as_bytes())),
            Value::List(count, of) => write!(f, "a list of {count} {of}"),
        }
    }
}

/// Types of metadata, all but lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    U64,
    I64,
    F64,
}

/// The number of the list type.
pub(super) const LIST: u32 = 9;

impl Kind {
    pub(super) fn numbered(number: u32) -> Option<Kind> {
        const KINDS: [Option<Kind>; 13] = [
            Some(Kind::U8),
            Some(Kind::I8),
            Some(Kind::U16),
            Some(Kind::I16),
            Some(Kind::U32),
            Some(Kind::I32),
            Some(Kind::F32),
            Some(Kind::Bool),
            Some(Kind::Text),
            None,
            Some(Kind::U64),
            Some(Kind::I64),
            Some(Kind::F64),
        ];
        KINDS.get(usize::try_from(number).ok()?).copied().flatten()
    }

    /// Bytes of a value; `None` for text.
    pub(super) fn bytes(self) -> Option<u64> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Text => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Text => "strings",
            Kind::Bool => "booleans",
            Kind::F32 | Kind::F64 => "numbers",
            _ => "integers",
        }
    }

    /// The next value; `None` where it ends too early or is none.
    pub(super) fn read<'a>(self, reader: &mut Reader<'a>) -> Option<Value<'a>> {
        let signed = |x: i64| u64::try_from(x).map_or(Value::Negative(x), Value::Integer);
        Some(match self {
            Kind::U8 => Value::Integer(reader.byte()?.into()),
            Kind::I8 => signed((reader.byte()? as i8).into()),
            Kind::U16 => Value::Integer(reader.u16()?.into()),
            Kind::I16 => signed((reader.u16()? as i16).into()),
            Kind::U32 => Value::Integer(reader.u32()?.into()),
            Kind::I32 => signed((reader.u32()? as i32).into()),
            Kind::U64 => Value::Integer(reader.u64()?),
            Kind::I64 => signed(reader.u64()? as i64),
            Kind::F32 => Value::Number(f32::from_bits(reader.u32()?).into()),
            Kind::F64 => Value::Number(f64::from_bits(reader.u64()?)),
            Kind::Bool => match reader.byte()? {
                0 => Value::Flag(false),
                1 => Value::Flag(true),
                _ => return None,
            },
            Kind::Text => Value::Text(reader.text()?),
        })
    }
}
