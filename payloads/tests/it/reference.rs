//! A second implementation of the encoding that knows nothing but PROTOCOL.md's tables.
//!
//! It decodes bytes to the text that Rust's `Debug` would print of the same value, and it makes
//! well-formed bytes of any type out of a stream of choices, for property tests.

use crate::page::{Definition, Field, Schema, Type};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Decodes by the tables.
pub(crate) struct Reference<'a> {
    schema: &'a Schema,
    /// Every (enum, variant) that was met.
    pub(crate) met: BTreeSet<(String, String)>,
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (now, rest) = self.rest.split_at(count);
        self.rest = rest;
        now
    }

    fn unsigned(&mut self, bytes: usize) -> u64 {
        self.take(bytes)
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn len(&mut self) -> usize {
        usize::try_from(self.unsigned(8)).expect("golden vectors are short")
    }
}

impl<'a> Reference<'a> {
    pub(crate) fn new(schema: &'a Schema) -> Self {
        Self {
            schema,
            met: BTreeSet::new(),
        }
    }

    /// The value of this type that fills all of `bytes`, as text.
    pub(crate) fn decode(&mut self, name: &str, bytes: &[u8]) -> String {
        let mut cursor = Cursor { rest: bytes };
        let mut out = String::new();
        self.value(&Type::Named(name.to_owned()), &mut cursor, &mut out);
        assert!(
            cursor.rest.is_empty(),
            "{} bytes behind {name}",
            cursor.rest.len()
        );
        out
    }

    fn value(&mut self, kind: &Type, from: &mut Cursor<'_>, out: &mut String) {
        match kind {
            Type::Integer {
                bytes,
                signed: false,
            } => {
                write!(out, "{}", from.unsigned(*bytes)).unwrap();
            }
            Type::Integer {
                bytes,
                signed: true,
            } => {
                let shift = 64 - 8 * bytes;
                let value = (from.unsigned(*bytes) << shift).cast_signed() >> shift;
                write!(out, "{value}").unwrap();
            }
            Type::Bool => write!(out, "{}", from.unsigned(1) == 1).unwrap(),
            Type::Text => {
                let length = from.len();
                let text = std::str::from_utf8(from.take(length)).expect("UTF-8");
                write!(out, "{text:?}").unwrap();
            }
            Type::List(inner) => {
                out.push('[');
                for index in 0..from.len() {
                    out.push_str(if index == 0 { "" } else { ", " });
                    self.value(inner, from, out);
                }
                out.push(']');
            }
            Type::Optional(inner) => match from.unsigned(1) {
                0 => out.push_str("None"),
                _ => {
                    out.push_str("Some(");
                    self.value(inner, from, out);
                    out.push(')');
                }
            },
            Type::Named(name) => self.named(name, from, out),
        }
    }

    fn named(&mut self, name: &str, from: &mut Cursor<'_>, out: &mut String) {
        match self.schema.definition(name) {
            Definition::Counter(inner) => {
                write!(out, "{name}(").unwrap();
                self.value(inner, from, out);
                out.push(')');
            }
            Definition::Id => {
                write!(out, "{name}(").unwrap();
                for (index, byte) in from.take(16).iter().enumerate() {
                    out.push_str(if [4, 6, 8, 10].contains(&index) {
                        "-"
                    } else {
                        ""
                    });
                    write!(out, "{byte:02x}").unwrap();
                }
                out.push(')');
            }
            Definition::Structure(fields) => {
                out.push_str(name);
                self.fields(fields, from, out);
            }
            Definition::Enum(variants) => {
                let tag = usize::try_from(from.unsigned(4)).expect("a u32");
                let (variant, fields) = &variants[tag];
                self.met.insert((name.to_owned(), variant.clone()));
                out.push_str(variant);
                self.fields(fields, from, out);
            }
        }
    }

    fn fields(&mut self, fields: &[Field], from: &mut Cursor<'_>, out: &mut String) {
        let Some(first) = fields.first() else { return };
        let (open, close) = if first.name.is_some() {
            (" { ", " }")
        } else {
            ("(", ")")
        };
        out.push_str(open);
        for (index, field) in fields.iter().enumerate() {
            out.push_str(if index == 0 { "" } else { ", " });
            if let Some(name) = &field.name {
                write!(out, "{name}: ").unwrap();
            }
            self.value(&field.kind, from, out);
        }
        out.push_str(close);
    }
}

/// A stream of choices; an exhausted one chooses the smallest value for ever.
pub(crate) struct Choices<'a>(pub(crate) &'a [u8]);

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }
}

/// Names and texts that fields may hold, the last ones being outside of some limits.
const TEXTS: [&str; 8] = [
    "node-1",
    "a",
    "",
    "zone/b.c_d",
    "sh -c 'exit 7'",
    "grüße",
    "tab\there",
    "nul\0",
];

impl Schema {
    /// Appends well-formed bytes of this type. They may be outside of its limits.
    pub(crate) fn generate(&self, kind: &Type, choices: &mut Choices<'_>, out: &mut Vec<u8>) {
        match kind {
            Type::Integer { bytes, .. } => {
                // Mostly small and mostly from 1, so that limits are met as often as missed.
                let value = match choices.next() {
                    low @ ..=199 => u64::from(low % 40 + 1),
                    200..=219 => 0,
                    220..=229 => 1000,
                    _ => u64::from_le_bytes(std::array::from_fn(|_| choices.next())),
                };
                out.extend_from_slice(&value.to_le_bytes()[..*bytes]);
            }
            Type::Bool => out.push(choices.next() & 1),
            Type::Text => {
                // Squared, so that the first ones are the usual ones.
                let pick = usize::from(choices.next()) * usize::from(choices.next()) / 8129;
                let text = TEXTS[pick.min(TEXTS.len() - 1)];
                out.extend_from_slice(&(text.len() as u64).to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }
            Type::List(inner) => {
                let count = match choices.next() {
                    ..=99 => 0,
                    100..=179 => 1,
                    180..=229 => 2,
                    more => u64::from(more - 227),
                };
                out.extend_from_slice(&count.to_le_bytes());
                (0..count).for_each(|_| self.generate(inner, choices, out));
            }
            Type::Optional(inner) => {
                let present = choices.next() & 1;
                out.push(present);
                if present == 1 {
                    self.generate(inner, choices, out);
                }
            }
            Type::Named(name) => match self.definition(name) {
                Definition::Counter(inner) => self.generate(inner, choices, out),
                Definition::Id => out.extend((0..16).map(|_| choices.next())),
                Definition::Structure(fields) => {
                    fields
                        .iter()
                        .for_each(|field| self.generate(&field.kind, choices, out));
                }
                Definition::Enum(variants) => {
                    let tag = usize::from(choices.next()) % variants.len();
                    let code = u32::try_from(tag).expect("few variants");
                    out.extend_from_slice(&code.to_le_bytes());
                    variants[tag].1.iter().for_each(|field| {
                        self.generate(&field.kind, choices, out);
                    });
                }
            },
        }
    }
}
