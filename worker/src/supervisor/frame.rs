//! Frames as bytes: a little-endian `u32` length and that many bytes of JSON.

use super::ipc::MAX_FRAME_BYTES;
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Why a frame could not be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// More bytes than any frame has.
    #[error("a frame of {0} bytes is above the limit of {MAX_FRAME_BYTES}")]
    TooLarge(u64),
    /// The other end speaks otherwise.
    #[error("a frame cannot be read: {0}; are llm2clip-worker and llm2clip-trainer of the same version?")]
    Json(#[from] serde_json::Error),
}

/// A message as a whole frame.
///
/// # Errors
/// When it is above the limit.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = checked(u64::try_from(frame.len() - 4).unwrap_or(u64::MAX))?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// The next message; `None` when the other end closed the connection between two frames.
///
/// # Errors
/// When the connection breaks within a frame, or the frame is none.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut length = [0; 4];
    match from.read(&mut length[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut length[1..])?,
    }
    let mut body = vec![0; checked(u32::from_le_bytes(length).into())? as usize];
    from.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// As [`read`], on a runtime. It must not be dropped half-way: the rest of the frame would be taken for a new one.
///
/// # Errors
/// As [`read`].
pub async fn read_async<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<T>, FrameError> {
    let mut length = [0; 4];
    match from.read(&mut length[..1]).await? {
        0 => return Ok(None),
        _ => from.read_exact(&mut length[1..]).await?,
    };
    let mut body = vec![0; checked(u32::from_le_bytes(length).into())? as usize];
    from.read_exact(&mut body).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}

fn checked(bytes: u64) -> Result<u32, FrameError> {
    u32::try_from(bytes).ok().filter(|length| *length <= MAX_FRAME_BYTES).ok_or(FrameError::TooLarge(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::ipc::Order;

    #[test]
    fn frames_follow_one_another_and_the_end_is_seen() {
        let mut bytes = encode(&Order::Stop).unwrap();
        assert_eq!(bytes, [&16u32.to_le_bytes()[..], b"{\"order\":\"stop\"}"].concat());
        bytes.extend(bytes.clone());
        let mut from = bytes.as_slice();
        for _ in 0..2 {
            assert_eq!(read::<Order>(&mut from).unwrap(), Some(Order::Stop));
        }
        assert_eq!(read::<Order>(&mut from).unwrap(), None);
    }

    #[test]
    fn a_torn_frame_and_a_foreign_one_are_errors() {
        let bytes = encode(&Order::Stop).unwrap();
        assert!(matches!(read::<Order>(&mut &bytes[..7]), Err(FrameError::Io(_))));
        assert!(matches!(read::<Order>(&mut &b"\x02\0\0\0{}"[..]), Err(FrameError::Json(_))));
        assert!(matches!(read::<Order>(&mut &b"\xff\xff\xff\xff"[..]), Err(FrameError::TooLarge(_))));
    }
}
