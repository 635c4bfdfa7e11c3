//! Whether a JPEG ends as one does.

/// Whether an end marker follows the first scan's header. Without one the file was cut off.
pub fn has_end(bytes: &[u8]) -> bool {
    let start = first_scan(bytes).unwrap_or(0);
    bytes[start..].windows(2).rev().any(|pair| pair == [0xff, 0xd9])
}

/// Where the first scan's header begins: behind segments that tell their lengths, in which thumbnails may have end
/// markers of their own.
fn first_scan(bytes: &[u8]) -> Option<usize> {
    let mut at = 2;
    loop {
        // Any number of 0xff may stand before a marker.
        let marker = *bytes.get(at + 1)?;
        match (bytes.get(at)?, marker) {
            (0xff, 0xff) => at += 1,
            (0xff, 0xda) => return Some(at),
            // Markers without a segment.
            (0xff, 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, _) => at += 2 + usize::from(u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?])),
            // Bytes between segments, which libjpeg passes over with a warning.
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THUMBNAIL: [u8; 10] = [0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 1, 2];

    #[test]
    fn an_end_marker_in_a_thumbnail_is_not_the_end() {
        let cut = [&THUMBNAIL[..], &[0xff, 0xda, 0, 2, 1, 2, 3]].concat();
        assert!(!has_end(&cut));
        assert!(has_end(&[&cut[..], &[0xff, 0xd9]].concat()));
        assert!(has_end(&[&cut[..], &[0xff, 0xd9, 0, 0, 7]].concat()), "bytes after the end are borne");
    }
}
