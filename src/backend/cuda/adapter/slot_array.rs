//! Arrays at the head of an adapter's image: what it changes at each group, embedding or norm of the model.

use crate::backend::cuda::device_image::{DeviceImage, HasPointers};

/// One of these arrays, once for each repeat of a layer that it has something of.
pub(super) struct SlotArray<T> {
    values: Vec<T>,
    /// Where it is in the image.
    offset: usize,
    per_repeat: usize,
}

impl<T: HasPointers + Default> SlotArray<T> {
    /// Reserves it for `(index, repeat)` of a model that has `per_repeat` of them.
    pub(super) fn reserve(
        image: &mut DeviceImage,
        per_repeat: usize,
        places: impl Iterator<Item = (usize, u32)>,
    ) -> Self {
        let repeats = places.map(|(_, repeat)| repeat as usize + 1).max().unwrap_or(0);
        let values = vec![T::default(); repeats * per_repeat];
        Self { offset: image.reserve::<T>(values.len()), values, per_repeat }
    }

    /// Writes one.
    pub(super) fn set(&mut self, image: &mut DeviceImage, (index, repeat): (usize, u32), value: T) {
        let at = repeat as usize * self.per_repeat + index;
        self.values[at] = value;
        image.write(self.offset + at * size_of::<T>(), &value);
    }

    /// Where it is in the image.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// All of them.
    pub(super) fn into_values(self) -> Vec<T> {
        self.values
    }
}
