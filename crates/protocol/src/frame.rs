//! Frames: how two servers talk over a connection of their own.
//!
//! A frame is a length (4 bytes, little endian, of what follows), a version byte, and a postcard
//! message. Such a connection begins as an HTTP/1.1 upgrade, on the same port and with the same
//! secret as everything else; see `pygmy_client::stream`.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The version of the messages that this build writes. A reader refuses what is newer.
pub const VERSION: u8 = 1;
/// Largest frame in bytes. A batch of buys has some hundred kilobytes at most.
pub const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;

const HEAD_BYTES: usize = 5;

/// Appends `message` as a frame to `buffer`.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is over [`MAX_FRAME_BYTES`].
pub fn encode<M: Serialize>(message: &M, buffer: &mut Vec<u8>) -> io::Result<()> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEAD_BYTES]);
    let mut filled = postcard::to_extend(message, std::mem::take(buffer)).map_err(invalid)?;
    std::mem::swap(buffer, &mut filled);
    let length = buffer.len() - start - 4;
    if length > MAX_FRAME_BYTES {
        buffer.truncate(start);
        return Err(invalid(format!("a frame of {length} bytes is over the limit")));
    }
    buffer[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
    buffer[start + 4] = VERSION;
    Ok(())
}

/// Writes one message and flushes.
///
/// # Errors
/// As the connection says, and as [`encode`].
pub async fn write<M: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    message: &M,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    encode(message, &mut buffer)?;
    to.write_all(&buffer).await?;
    to.flush().await
}

/// Reads the next message; `None` if the other side closed between two frames.
///
/// # Errors
/// As the connection says; [`io::ErrorKind::InvalidData`] for a frame that is too long, of a
/// newer version, or no such message.
pub async fn read<M: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<M>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let length = u32::from_le_bytes(length) as usize;
    if !(1..=MAX_FRAME_BYTES).contains(&length) {
        return Err(invalid(format!("a frame of {length} bytes is out of range")));
    }
    // Grows with what arrives: a lying length costs its sender, not us.
    let mut frame = Vec::with_capacity(length.min(64 * 1024));
    from.take(length as u64).read_to_end(&mut frame).await?;
    if frame.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    decode(&frame).map(Some)
}

fn decode<M: DeserializeOwned>(frame: &[u8]) -> io::Result<M> {
    match frame.split_first() {
        Some((&VERSION, message)) => postcard::from_bytes(message).map_err(invalid),
        Some((version, _)) => {
            Err(invalid(format!("a frame of version {version}; this build reads {VERSION}")))
        }
        None => Err(invalid("an empty frame")),
    }
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_back_in_order() {
        let (mut a, mut b) = tokio::io::duplex(64);
        let writer = async {
            write(&mut a, &"one".to_owned()).await.unwrap();
            write(&mut a, &"x".repeat(1000)).await.unwrap();
            drop(a);
        };
        let reader = async {
            assert_eq!(read::<String>(&mut b).await.unwrap().unwrap(), "one");
            assert_eq!(read::<String>(&mut b).await.unwrap().unwrap().len(), 1000);
            assert!(read::<String>(&mut b).await.unwrap().is_none());
        };
        tokio::join!(writer, reader);
    }

    #[tokio::test]
    async fn bad_frames_are_errors() {
        for bytes in
            [&[0, 0, 0, 0][..], &[255, 255, 255, 255, 1], &[1, 0, 0, 0, 99], &[9, 0, 0, 0, 1, 2]]
        {
            let mut from = bytes;
            assert!(read::<String>(&mut from).await.is_err(), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_no_panic(bytes: Vec<u8>) {
            let _ = decode::<crate::command::Request>(&bytes);
            let _ = decode::<crate::invalidation::FromCatalog>(&bytes);
        }
    }
}
