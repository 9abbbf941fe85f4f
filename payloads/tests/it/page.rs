//! PROTOCOL.md, read by machine: its type tables, its limits, its frames, its worked example.

use std::collections::BTreeMap;

/// The page's text.
pub(crate) fn text() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../PROTOCOL.md");
    std::fs::read_to_string(path).expect("PROTOCOL.md stands beside the crates")
}

/// A type as the tables write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// An integer: its bytes, and whether it is signed.
    Integer {
        bytes: usize,
        signed: bool,
    },
    Bool,
    Text,
    List(Box<Type>),
    Optional(Box<Type>),
    Named(String),
}

/// Fields in their order; without names they are a tuple.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) name: Option<String>,
    pub(crate) kind: Type,
}

/// What stands under a type's heading.
#[derive(Clone, Debug)]
pub(crate) enum Definition {
    Counter(Type),
    Id,
    Structure(Vec<Field>),
    /// Variants by tag, dense from 0.
    Enum(Vec<(String, Vec<Field>)>),
}

/// All types of the page.
pub(crate) struct Schema {
    pub(crate) types: BTreeMap<String, Definition>,
    /// The offset column as it is written, by type and field.
    pub(crate) offsets: BTreeMap<(String, String), String>,
}

/// The cells of a table row.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// The rows of the table that has this first header, below this heading.
pub(crate) fn rows<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    text.lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with('#'))
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .filter_map(cells)
        .skip(2)
        .collect()
}

impl Type {
    fn parse(text: &str) -> Self {
        let text = text.trim();
        if let Some(inner) = text.strip_prefix("list of ") {
            return Self::List(Box::new(Self::parse(inner)));
        }
        if let Some(inner) = text.strip_prefix("optional ") {
            return Self::Optional(Box::new(Self::parse(inner)));
        }
        if let Some(name) = text
            .strip_prefix('`')
            .and_then(|name| name.strip_suffix('`'))
        {
            return Self::Named(name.to_owned());
        }
        let integer = |bytes, signed| Self::Integer { bytes, signed };
        match text {
            "u8" => integer(1, false),
            "u16" => integer(2, false),
            "u32" => integer(4, false),
            "u64" => integer(8, false),
            "i32" => integer(4, true),
            "bool" => Self::Bool,
            "string" => Self::Text,
            other => panic!("PROTOCOL.md names the unknown type '{other}'"),
        }
    }
}

fn unquoted(text: &str) -> String {
    text.trim_matches('`').to_owned()
}

fn variant_fields(text: &str) -> Vec<Field> {
    if text == "–" {
        return Vec::new();
    }
    text.split(", ")
        .map(|part| match part.split_once(": ") {
            Some((name, kind)) => Field {
                name: Some(unquoted(name)),
                kind: Type::parse(kind),
            },
            None => Field {
                name: None,
                kind: Type::parse(part),
            },
        })
        .collect()
}

/// Reads the types of the page.
pub(crate) fn schema(text: &str) -> Schema {
    let mut types = BTreeMap::new();
    let mut offsets = BTreeMap::new();
    for row in rows(text, "### Numbers and ids with a name of their own") {
        let definition = match row[1] {
            "16 bytes" => Definition::Id,
            number => Definition::Counter(Type::parse(number)),
        };
        types.insert(unquoted(row[0]), definition);
    }
    for heading in text.lines().filter(|line| line.starts_with("#### `")) {
        let name = unquoted(heading.trim_start_matches("#### "));
        let table = rows(text, heading);
        // A structure's table has the fields in its second column and no fields in its third.
        let is_enum = text
            .lines()
            .skip_while(|line| *line != heading)
            .find(|line| line.starts_with('|'))
            .is_some_and(|line| line.starts_with("| tag "));
        let definition = if is_enum {
            let variants = table.iter().enumerate().map(|(tag, row)| {
                assert_eq!(row[0], tag.to_string(), "tags of {name}");
                (unquoted(row[1]), variant_fields(row[2]))
            });
            Definition::Enum(variants.collect())
        } else {
            let fields = table.iter().map(|row| {
                let field = unquoted(row[1]);
                offsets.insert((name.clone(), field.clone()), row[0].to_owned());
                Field {
                    name: Some(field),
                    kind: Type::parse(row[2]),
                }
            });
            Definition::Structure(fields.collect())
        };
        assert!(
            types.insert(name.clone(), definition).is_none(),
            "{name} stands there twice"
        );
    }
    Schema { types, offsets }
}

impl Schema {
    /// The bytes of a type if they are always as many.
    pub(crate) fn fixed_len(&self, kind: &Type) -> Option<usize> {
        match kind {
            Type::Integer { bytes, .. } => Some(*bytes),
            Type::Bool => Some(1),
            Type::Text | Type::List(_) | Type::Optional(_) => None,
            Type::Named(name) => match self.definition(name) {
                Definition::Counter(inner) => self.fixed_len(inner),
                Definition::Id => Some(16),
                Definition::Structure(fields) => {
                    fields.iter().map(|field| self.fixed_len(&field.kind)).sum()
                }
                Definition::Enum(variants) => variants
                    .iter()
                    .all(|(_, fields)| fields.is_empty())
                    .then_some(4),
            },
        }
    }

    pub(crate) fn definition(&self, name: &str) -> &Definition {
        self.types
            .get(name)
            .unwrap_or_else(|| panic!("PROTOCOL.md has no table for {name}"))
    }
}

/// The bytes of the frame that the worked example shows under a heading that begins so.
pub(crate) fn example(text: &str, title: &str) -> Vec<u8> {
    let start = format!("### {title}");
    let listing = text
        .lines()
        .skip_while(|line| !line.starts_with(&start))
        .skip_while(|line| !line.starts_with("```"))
        .skip(1)
        .take_while(|line| !line.starts_with("```"));
    let mut bytes = Vec::new();
    for line in listing {
        let (offset, rest) = line.split_once("  ").expect("an offset, two spaces, bytes");
        assert_eq!(
            usize::from_str_radix(offset, 16),
            Ok(bytes.len()),
            "offset in: {line}"
        );
        let hex = rest.split(';').next().unwrap_or_default();
        bytes.extend(
            hex.split_whitespace()
                .map(|byte| u8::from_str_radix(byte, 16).expect(line)),
        );
    }
    assert!(!bytes.is_empty(), "PROTOCOL.md has no example '{title}'");
    bytes
}
