//! The table of a `Precompiled` normalizer: SentencePiece's double-array trie, and the texts that its leaves point to.
//!
//! The library walks the trie and slices the texts without a check. Every walk is checked here instead.

use super::fault::Fault;

/// The longest text for one character; NFKC's longest has 33 bytes.
const MAX_TEXT_BYTES: usize = 256;

/// Checks a table that is encoded in base64.
pub(super) fn check(encoded: &str) -> Result<(), Fault> {
    let damaged = || Fault::from("the charsmap of Precompiled is damaged");
    let bytes = base64_decoded(encoded).ok_or_else(damaged)?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
    let size = u32::from_le_bytes(*size) as usize / 4 * 4;
    let (trie, texts) = rest.split_at_checked(size).ok_or_else(damaged)?;
    let trie: Vec<usize> = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let texts = std::str::from_utf8(texts).map_err(|_| damaged())?;
    if texts.split('\0').any(|text| text.len() > MAX_TEXT_BYTES) {
        return Err(format!("Precompiled replaces a character by more than {MAX_TEXT_BYTES} bytes").into());
    }
    if every_walk_ends_well(&trie, texts) { Ok(()) } else { Err(damaged()) }
}

/// Follows the trie as `spm_precompiled` does: the unit at a node's position XOR a byte is that byte's child if it is labeled
/// with the byte, and holds where the child's own children are.
fn every_walk_ends_well(trie: &[usize], texts: &str) -> bool {
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let Some(root) = trie.first().map(|&unit| offset(unit)) else { return false };
    let mut seen = vec![false; trie.len()];
    let mut waiting = vec![root];
    while let Some(node) = waiting.pop() {
        if node >= trie.len() {
            return false;
        }
        if std::mem::replace(&mut seen[node], true) {
            continue;
        }
        for byte in 1..=0xFF {
            let Some(&unit) = trie.get(node ^ byte) else { return false };
            if unit & ((1 << 31) | 0xFF) != byte {
                continue;
            }
            let child = node ^ byte ^ offset(unit);
            let is_leaf = (unit >> 8) & 1 == 1;
            if is_leaf && !trie.get(child).is_some_and(|value| texts.is_char_boundary(value & ((1 << 31) - 1))) {
                return false;
            }
            waiting.push(child);
        }
    }
    true
}

/// Standard base64 with padding.
fn base64_decoded(text: &str) -> Option<Vec<u8>> {
    let text = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0);
    for c in text.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xFFFF;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(base64_decoded(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(base64_decoded("a b"), None);
    }
}
