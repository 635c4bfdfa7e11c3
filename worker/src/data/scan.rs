//! One shard's samples: members grouped by key.

use super::{
    DataError,
    report::{ShardFault, SkipReason},
    tar::{End, Walk},
};
use std::{collections::HashMap, fs::File, path::Path};

/// The longest caption that is believed, in bytes.
const LONGEST_TEXT: u64 = 1 << 20;
/// Extensions of images; what a file really is its first bytes say.
const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Where an image's bytes are in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// A key's members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSample {
    /// The members' name up to the first dot of its last component.
    pub key: String,
    /// The image; `None` when there is none.
    pub image: Option<Extent>,
    /// The `.txt`; `None` when there is none.
    pub text: Option<RawText>,
}

/// The contents of a `.txt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawText {
    /// A caption.
    Text(String),
    /// Bytes that are no UTF-8, or far too many.
    Invalid,
}

/// What a shard holds, in the order of its members.
#[derive(Debug, Default)]
pub struct ShardScan {
    /// Its samples.
    pub samples: Vec<RawSample>,
    /// Members that were there already, by key.
    pub duplicates: Vec<String>,
    /// What is wrong with the tar.
    pub fault: Option<ShardFault>,
}

/// Reads a shard's headers and captions.
pub fn scan(path: &Path) -> Result<ShardScan, DataError> {
    let io = |operation| move |source| DataError::Io { operation, path: path.to_owned(), source };
    let file = File::open(path).map_err(io("open"))?;
    let mut walk = Walk::new(&file).map_err(io("read"))?;
    let mut found = ShardScan::default();
    let mut places: HashMap<String, usize> = HashMap::new();
    while let Some(member) = walk.next().map_err(io("read"))? {
        let Some((key, extension)) = split(&member.name) else { continue };
        let is_image = IMAGES.contains(&extension.as_str());
        if !is_image && extension != "txt" && extension != "json" {
            continue;
        }
        let place = *places.entry(key.to_owned()).or_insert_with(|| {
            found.samples.push(RawSample { key: key.to_owned(), image: None, text: None });
            found.samples.len() - 1
        });
        let sample = &mut found.samples[place];
        if is_image && sample.image.is_none() {
            sample.image = Some(Extent { offset: member.offset, length: member.size });
        } else if extension == "txt" && sample.text.is_none() {
            sample.text = Some(if member.size > LONGEST_TEXT {
                RawText::Invalid
            } else {
                let bytes = walk.bytes(member.offset, member.size).map_err(io("read"))?;
                std::str::from_utf8(bytes).map_or(RawText::Invalid, |text| RawText::Text(text.to_owned()))
            });
        } else if extension != "json" {
            found.duplicates.push(sample.key.clone());
        }
    }
    let fault = |fault, used_bytes| Some(ShardFault { path: path.to_owned(), fault, used_bytes });
    found.fault = match walk.end() {
        Some(End::Truncated(at)) => fault("truncated", at),
        Some(End::Damaged(at)) => fault("damaged", at),
        Some(End::NotATar) => return Err(DataError::NotATar { path: path.to_owned() }),
        Some(End::Whole) | None => None,
    };
    Ok(found)
}

/// A member's key and lower-case extension; `None` for names without a dot and for macOS's `._` files.
fn split(name: &str) -> Option<(&str, String)> {
    let name = name.strip_prefix("./").unwrap_or(name);
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    if dot == base {
        return None;
    }
    Some((&name[..dot], name[dot + 1..].to_ascii_lowercase()))
}

impl RawSample {
    /// The image, or why there is none to use.
    pub fn usable_image(&self) -> Result<Extent, SkipReason> {
        match self.image {
            None => Err(SkipReason::NoImage),
            Some(Extent { length: 0, .. }) => Err(SkipReason::EmptyImage),
            Some(extent) => Ok(extent),
        }
    }

    /// The `.txt`, or why there is none to use.
    pub fn usable_text(&self) -> Result<&str, SkipReason> {
        match &self.text {
            None => Err(SkipReason::NoText),
            Some(RawText::Invalid) => Err(SkipReason::InvalidUtf8),
            Some(RawText::Text(text)) => Ok(text),
        }
    }
}
