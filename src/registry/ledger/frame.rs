//! The form of a record in the file: it says whether it is whole, and can be found without any table.
//!
//! `magic (3) · kind (1) · length of the key (4) · length of the payload (4) · key · payload · crc32 (4)`,
//! numbers little-endian, the checksum over all that is before it. The key is that of the table.

/// What a record begins with.
pub(super) const MAGIC: [u8; 3] = [0xC5, 0x5C, b'r'];
pub(crate) const HEAD: usize = 12;
const KEY_LENGTH: usize = 4;
const PAYLOAD_LENGTH: usize = 8;
const CHECKSUM: usize = 4;

/// A record, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) key: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Its bytes. One with a part of 4 GiB can't be made; nothing that is kept comes near that.
    pub(crate) fn encode(self) -> Vec<u8> {
        let Frame { kind, key, payload } = self;
        let length = |part: &[u8]| u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes = Vec::with_capacity(HEAD + key.len() + payload.len() + CHECKSUM);
        bytes.extend(MAGIC);
        bytes.push(kind);
        bytes.extend(length(key));
        bytes.extend(length(payload));
        bytes.extend(key);
        bytes.extend(payload);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// How many bytes the one takes that these begin with, if it is whole; `None` where none does.
    pub(crate) fn length(head: &[u8]) -> Option<usize> {
        end(head)?.checked_add(CHECKSUM)
    }

    /// The one that these bytes begin with, and how many of them it takes; `None` where none does, or not a
    /// whole one.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<(Frame<'a>, usize)> {
        let end = end(bytes)?;
        let kind = *bytes.get(MAGIC.len())?;
        let key_end = HEAD.checked_add(number(bytes, KEY_LENGTH)?)?;
        let (key, payload) = (bytes.get(HEAD..key_end)?, bytes.get(key_end..end)?);
        let checksum = number(bytes, end)?;
        let is_whole = usize::try_from(crc32fast::hash(bytes.get(..end)?)) == Ok(checksum);
        is_whole.then_some((Frame { kind, key, payload }, end + CHECKSUM))
    }
}

/// Where the checksum of the frame is that these bytes begin with.
fn end(bytes: &[u8]) -> Option<usize> {
    bytes.strip_prefix(&MAGIC)?;
    let key_end = HEAD.checked_add(number(bytes, KEY_LENGTH)?)?;
    key_end.checked_add(number(bytes, PAYLOAD_LENGTH)?)
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let number = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_le_bytes(number.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_frame_is_found_whole_or_not_at_all(
            kind: u8,
            key: Vec<u8>,
            payload: Vec<u8>,
            rest: Vec<u8>,
            damage in any::<prop::sample::Index>(),
            bit in 0..8_u32,
        ) {
            let frame = Frame { kind, key: &key, payload: &payload };
            let whole = frame.encode();
            let mut bytes = whole.clone();
            bytes.extend(rest);
            prop_assert_eq!(Frame::decode(&bytes), Some((frame, whole.len())));
            prop_assert_eq!(Frame::length(&bytes[..HEAD]), Some(whole.len()));
            let at = damage.index(whole.len());
            prop_assert_eq!(Frame::decode(&whole[..at]), None);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Frame::decode(&bytes[..whole.len()]), None);
        }
    }
}
