//! Files of version 1: safetensors, one tensor `[rows, width]` of bf16 a column, the provenance in the metadata, no
//! checksums. They are read where they lie; what is written is always the newest version.

use serde::Deserialize;
use std::collections::BTreeMap;

/// The longest header that is believed; theirs have about 2 KiB.
const LONGEST: u64 = 16 << 20;

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub struct Tensors {
    /// Numbers a vector.
    pub width: u64,
    /// Per column, its first byte in the file.
    pub columns: Vec<(String, u64)>,
    /// What the vectors depend on.
    pub metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: [u64; 2],
    data_offsets: [u64; 2],
}

/// The header's length in bytes, by the file's first eight.
pub fn header_length(first: [u8; 8], file_length: u64) -> Result<usize, String> {
    let length = u64::from_le_bytes(first);
    let inside = length.checked_add(8).is_some_and(|end| end <= file_length);
    let believed = (inside && length <= LONGEST).then(|| usize::try_from(length).ok()).flatten();
    believed.ok_or_else(|| "its header is damaged".to_owned())
}

/// Reads a header of a file of `file_length` bytes, which must hold `rows` rows of bf16.
pub fn parse(header: &[u8], file_length: u64, rows: u64) -> Result<Tensors, String> {
    let mut fields: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|error| format!("its header: {error}"))?;
    let metadata = fields.remove("__metadata__").map(serde_json::from_value).transpose();
    let metadata = metadata.map_err(|error| format!("its metadata: {error}"))?.unwrap_or_default();
    let start = 8 + header.len() as u64;
    let mut columns = Vec::new();
    let mut width = None;
    let mut end = start;
    for (name, value) in fields {
        let tensor: Tensor = serde_json::from_value(value).map_err(|error| format!("`{name}`: {error}"))?;
        let [n, d] = tensor.shape;
        let [from, to] = tensor.data_offsets;
        if tensor.dtype != "BF16" || n != rows || *width.get_or_insert(d) != d || d == 0 {
            return Err(format!("`{name}` is {} {n} x {d}, and {rows} rows of bf16 are due", tensor.dtype));
        }
        let bytes = n.checked_mul(d).and_then(|numbers| numbers.checked_mul(2));
        let place = start.checked_add(from).zip(start.checked_add(to)).filter(|(_, end)| *end <= file_length);
        let (Some(bytes), Some((first, last))) = (bytes, place) else {
            return Err(format!("`{name}` is not all there"));
        };
        if from.checked_add(bytes) != Some(to) {
            return Err(format!("`{name}` has another length than its shape"));
        }
        end = end.max(last);
        columns.push((name, first));
    }
    if end != file_length {
        return Err(format!("it has {file_length} bytes and should have {end}"));
    }
    let width = width.ok_or_else(|| "it holds no tensor".to_owned())?;
    Ok(Tensors { width, columns, metadata })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, file_length: u64, expected: Result<(u64, u64), &str>) {
        let read = parse(header.as_bytes(), file_length, 2);
        match (read, expected) {
            (Ok(tensors), Ok((width, first))) => {
                assert_eq!((tensors.width, tensors.columns[0].1), (width, first), "{header}");
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{header}: {error}"),
            (read, expected) => panic!("{header}: {read:?}, not {expected:?}"),
        }
    }

    #[test]
    fn what_a_header_claims_must_be_in_the_file() {
        let header = |shape: &str, offsets: &str| {
            format!(r#"{{"x":{{"dtype":"BF16","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let good = header("[2,3]", "[0,12]");
        let end = 8 + good.len() as u64 + 12;
        check(&good, end, Ok((3, end - 12)));
        check(&good, end - 1, Err("not all there"));
        check(&good, end + 1, Err("should have"));
        check(&header("[3,3]", "[0,18]"), end + 6, Err("2 rows of bf16 are due"));
        check(&header("[2,3]", "[2,12]"), end, Err("another length"));
        check(&header("[2,9223372036854775807]", "[0,12]"), end, Err("not all there"));
        check(&header("[2,3]", "[18446744073709551615,12]"), end, Err(""));
        check("{}", 10, Err("no tensor"));
        check("{", 9, Err("its header"));
        assert!(header_length(u64::MAX.to_le_bytes(), 100).is_err());
    }
}
