//! Bytes that are put together on the host and go to one address of the device: structs, and the arrays that they point to.

use bytemuck::{NoUninit, Pod, bytes_of, cast_slice};

/// Alignment of every array, in bytes: the widest load of a kernel.
pub const ALIGNMENT: usize = 16;

/// A struct that holds device addresses.
pub trait HasPointers: Pod {
    /// Where in the struct they are, in bytes.
    const POINTERS: &'static [usize];
}

/// Bytes for one address of the device.
#[derive(Debug, Default)]
pub struct DeviceImage {
    bytes: Vec<u8>,
    /// Device address of the first byte.
    base: u64,
    /// Where pointers into the image are.
    pointers: Vec<usize>,
}

impl DeviceImage {
    /// Empties it, keeping its buffers and its address.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.pointers.clear();
    }

    /// All bytes so far, with pointers for the address of [`DeviceImage::set_base`].
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Where the image will be on the device.
    pub fn set_base(&mut self, base: u64) {
        for &at in &self.pointers {
            if let Some(bytes) = self.bytes[at..].first_chunk_mut::<8>() {
                let moved = u64::from_le_bytes(*bytes).wrapping_sub(self.base).wrapping_add(base);
                *bytes = moved.to_le_bytes();
            }
        }
        self.base = base;
    }

    /// The address of a place in the image.
    pub fn address(&self, offset: usize) -> u64 {
        self.base + offset as u64
    }

    /// Appends zeros for `count` structs, to be written later, and returns where they are.
    pub fn reserve<T: Pod>(&mut self, count: usize) -> usize {
        self.align();
        let offset = self.bytes.len();
        self.bytes.resize(offset + count * size_of::<T>(), 0);
        offset
    }

    /// Writes a struct to a place that was reserved. Its addresses that are not 0 are those that this image gave.
    ///
    /// # Panics
    /// If the place is outside of the image.
    pub fn write<T: HasPointers>(&mut self, offset: usize, value: &T) {
        let bytes = bytes_of(value);
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        let is_set = |&at: &usize| bytes[at..].first_chunk::<8>().is_some_and(|pointer| *pointer != [0; 8]);
        self.pointers.extend(T::POINTERS.iter().copied().filter(is_set).map(|at| offset + at));
    }

    /// Appends a struct as [`DeviceImage::write`] does, and returns its address.
    pub fn push<T: HasPointers>(&mut self, value: &T) -> u64 {
        let offset = self.reserve::<T>(1);
        self.write(offset, value);
        self.address(offset)
    }

    /// Appends an array of what holds no addresses of this image, and returns its address.
    pub fn array<T: NoUninit>(&mut self, values: impl IntoIterator<Item = T>) -> u64 {
        self.align();
        let offset = self.bytes.len();
        values.into_iter().for_each(|value| self.bytes.extend_from_slice(bytes_of(&value)));
        self.address(offset)
    }

    /// The same of a slice.
    pub fn slice<T: NoUninit>(&mut self, values: &[T]) -> u64 {
        self.align();
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(cast_slice(values));
        self.address(offset)
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::{Zeroable, pod_read_unaligned};

    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
    #[repr(C)]
    struct Node {
        first: u64,
        number: u64,
        second: u64,
    }

    impl HasPointers for Node {
        const POINTERS: &'static [usize] = &[0, 16];
    }

    #[test]
    fn addresses_follow_the_image_and_nothing_else_does() {
        let mut image = DeviceImage::default();
        image.set_base(1 << 20);
        let reserved = image.reserve::<Node>(1);
        let numbers = image.slice(&[1u8, 2, 3]);
        let last = image.push(&Node { first: 0, number: numbers, second: numbers });
        image.write(reserved, &Node { first: last, number: 7, second: 0 });
        image.set_base(1 << 30);
        let node = |address: u64| -> Node {
            let at = (address - (1 << 20)) as usize;
            pod_read_unaligned(&image.bytes()[at..at + size_of::<Node>()])
        };
        let moved = |address: u64| address - (1 << 20) + (1 << 30);
        assert_eq!(node((1 << 20) + reserved as u64), Node { first: moved(last), number: 7, second: 0 });
        assert_eq!(node(last), Node { first: 0, number: numbers, second: moved(numbers) });
        assert!(numbers.is_multiple_of(ALIGNMENT as u64) && last.is_multiple_of(ALIGNMENT as u64));
    }
}
