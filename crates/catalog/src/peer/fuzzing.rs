use std::io::ErrorKind;

use futures_util::FutureExt;
use pygmy_protocol::{
    frame,
    invalidation::{FromCatalog, ToCatalog},
};
use serde::{Serialize, de::DeserializeOwned};

use super::message::{Hello, Message, Numbered, Reply};

/// Reads `bytes` as what comes over each kind of connection between two servers. Every frame is a
/// message or an error, and a message that is read is written and read again as the same.
pub fn frames(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 5 {
        0 => read_all::<Hello>(bytes),
        1 => read_all::<Numbered<Message>>(bytes),
        2 => read_all::<Numbered<Reply>>(bytes),
        3 => read_all::<ToCatalog>(bytes),
        _ => read_all::<FromCatalog>(bytes),
    }
}

fn read_all<M: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let mut from = bytes;
    while let Some(message) = read::<M>(&mut from) {
        let mut once = Vec::new();
        if frame::encode(&message, &mut once).is_err() {
            // Too long: what it was read from has longer numbers than it needs.
            continue;
        }
        let again = read::<M>(&mut once.as_slice()).expect("what was written can be read");
        let mut twice = Vec::new();
        frame::encode(&again, &mut twice).expect("it has the length that it had");
        assert_eq!(once, twice);
    }
}

/// `None` at the end, or where nothing can be read.
fn read<M: DeserializeOwned>(from: &mut &[u8]) -> Option<M> {
    // From memory: nothing is ever waited for.
    match frame::read::<M>(from).now_or_never().expect("it does not wait") {
        Ok(message) => message,
        Err(error) => {
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::InvalidData | ErrorKind::UnexpectedEof), "{error}");
            None
        }
    }
}
