//! Floats, keys and counts as the wire packs them: little-endian, whatever the machine. It knows no
//! message and no limit.

use bytes::Bytes;
use table::Key;

use crate::{Code, Error, Result};

/// Packs floats.
pub fn pack_floats(floats: &[f32]) -> Bytes {
    if cfg!(target_endian = "little") {
        return Bytes::copy_from_slice(bytemuck::cast_slice(floats));
    }
    floats.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// Packs floats and keeps their memory: nothing is copied on a little-endian machine.
pub fn pack_owned_floats(floats: Vec<f32>) -> Bytes {
    struct Packed(Vec<f32>);
    impl AsRef<[u8]> for Packed {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    if cfg!(target_endian = "little") {
        return Bytes::from_owner(Packed(floats));
    }
    pack_floats(&floats)
}

/// Packs keys.
pub fn pack_keys(keys: &[Key]) -> Bytes {
    if cfg!(target_endian = "little") {
        return Bytes::copy_from_slice(bytemuck::cast_slice(keys));
    }
    keys.iter().flat_map(|key| key.0.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// Packs counts of 32 bits.
pub fn pack_counts(counts: &[u32]) -> Bytes {
    if cfg!(target_endian = "little") {
        return Bytes::copy_from_slice(bytemuck::cast_slice(counts));
    }
    counts.iter().flat_map(|count| count.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// How many floats `packed` holds; `field` names it where that is not a whole number.
pub fn count_floats(field: &str, packed: &[u8]) -> Result<usize> {
    count(field, packed, size_of::<f32>())
}

/// Unpacks floats. The caller guarantees that `packed` holds as many as `floats` takes.
pub fn unpack_floats(packed: &[u8], floats: &mut [f32]) {
    assert_eq!(packed.len(), size_of_val(floats), "bytes of packed floats");
    if cfg!(target_endian = "little") {
        bytemuck::cast_slice_mut(floats).copy_from_slice(packed);
        return;
    }
    let (words, _) = packed.as_chunks::<4>();
    for (float, word) in floats.iter_mut().zip(words) {
        *float = f32::from_le_bytes(*word);
    }
}

/// Unpacks keys; their order is not looked at.
pub fn unpack_keys(field: &str, packed: &[u8]) -> Result<Vec<Key>> {
    count(field, packed, size_of::<u64>())?;
    let (words, _) = packed.as_chunks::<8>();
    Ok(words.iter().map(|word| Key(u64::from_le_bytes(*word))).collect())
}

/// Unpacks counts of 32 bits; their values are not looked at.
pub fn unpack_counts(field: &str, packed: &[u8]) -> Result<Vec<u32>> {
    count(field, packed, size_of::<u32>())?;
    let (words, _) = packed.as_chunks::<4>();
    Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
}

fn count(field: &str, packed: &[u8], element_bytes: usize) -> Result<usize> {
    if !packed.len().is_multiple_of(element_bytes) {
        let message =
            format!("{field} has {} bytes, expected a multiple of {element_bytes}", packed.len());
        return Err(Error::new(Code::InvalidArgument, message));
    }
    Ok(packed.len() / element_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_little_endian() {
        assert_eq!(pack_floats(&[1.0, -2.5])[..], [0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]);
        assert_eq!(pack_keys(&[Key(0x0102)])[..], [2, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_length_that_is_no_multiple_is_refused_by_name() {
        let error = unpack_keys("keys", &[0; 15]).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert_eq!(error.message(), "keys has 15 bytes, expected a multiple of 8");
        assert!(count_floats("gradients", &[0; 7]).is_err());
        assert!(unpack_counts("next_uses", &[0; 6]).unwrap_err().message().contains("next_uses"));
    }

    proptest::proptest! {
        #[test]
        fn every_bit_pattern_comes_back(bits: Vec<u32>, keys: Vec<u64>, skew in 0_usize..8) {
            let floats: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
            // a slice of a message starts at any address
            let mut shifted = vec![0; skew];
            shifted.extend_from_slice(&pack_floats(&floats));
            let mut back = vec![0.0; floats.len()];
            unpack_floats(&shifted[skew..], &mut back);
            assert_eq!(back.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), bits);
            assert_eq!(pack_owned_floats(floats.clone()), pack_floats(&floats));

            let keys: Vec<Key> = keys.into_iter().map(Key).collect();
            assert_eq!(unpack_keys("keys", &pack_keys(&keys)).unwrap(), keys);
            assert_eq!(unpack_counts("next_uses", &pack_counts(&bits)).unwrap(), bits);
        }
    }
}
