//! Rotary position embedding: by which angles heads are rotated, and how a rotated head is rotated on to another position.

/// Which channels of a head a rotation turns together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopeLayout {
    /// `i` and `i + pairs`: the halves of what is rotated ("NeoX").
    #[default]
    Halves,
    /// `2 i` and `2 i + 1` ("GPT-J").
    Pairs,
}

/// Rotary embedding of a layer: the first `2 * inv_freq.len()` channels of each head are rotated, the rest are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians per position of each channel pair.
    pub inv_freq: Vec<f32>,
    /// Factor on cosine and sine (yarn's attention factor; 1 otherwise).
    pub factor: f32,
    /// Which channels are a pair.
    pub layout: RopeLayout,
}

impl Rope {
    /// Rotates by these frequencies the halves of a head against each other.
    pub fn halves(inv_freq: Vec<f32>, factor: f32) -> Self {
        Self { inv_freq, factor, layout: RopeLayout::Halves }
    }

    /// Rotates heads of that width, which are rotated to position `from`, on to position `to`. The factor is in them already.
    pub fn shift(&self, from: usize, to: usize, head_dim: usize, heads: &mut [f32]) {
        let pairs = self.inv_freq.len();
        // The angles are those that attention rotates by, which are rounded to f32.
        let angle = |position: usize, frequency: f32| f64::from(position as f32 * frequency);
        let turn = |&frequency: &f32| (angle(to, frequency) - angle(from, frequency)).sin_cos();
        for (pair, (sin, cos)) in self.inv_freq.iter().map(turn).enumerate() {
            let (first, second) = match self.layout {
                RopeLayout::Halves => (pair, pair + pairs),
                RopeLayout::Pairs => (2 * pair, 2 * pair + 1),
            };
            for head in heads.chunks_exact_mut(head_dim) {
                let (a, b) = (f64::from(head[first]), f64::from(head[second]));
                head[first] = (a * cos - b * sin) as f32;
                head[second] = (b * cos + a * sin) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in f64.
    fn rotated(rope: &Rope, position: usize, head: &[f32]) -> Vec<f64> {
        let mut out: Vec<f64> = head.iter().map(|&x| x.into()).collect();
        for (i, &frequency) in rope.inv_freq.iter().enumerate() {
            let (a, b) = match rope.layout {
                RopeLayout::Halves => (i, i + rope.inv_freq.len()),
                RopeLayout::Pairs => (2 * i, 2 * i + 1),
            };
            let (sin, cos) = (position as f64 * f64::from(frequency)).sin_cos();
            let factor = f64::from(rope.factor);
            (out[a], out[b]) = (
                factor * (f64::from(head[a]) * cos - f64::from(head[b]) * sin),
                factor * (f64::from(head[b]) * cos + f64::from(head[a]) * sin),
            );
        }
        out
    }

    #[test]
    fn a_head_that_is_shifted_is_the_head_rotated_to_the_other_position() {
        let head: Vec<f32> = (0..10).map(|i| ((i * 7 + 3) % 11) as f32 - 5.0).collect();
        for layout in [RopeLayout::Halves, RopeLayout::Pairs] {
            // Six of ten channels; the last pair is not rotated (proportional).
            let rope = Rope { inv_freq: vec![1.0, 0.25, 0.0], factor: 1.5, layout };
            for (from, to) in [(0, 0), (3, 4), (4, 3), (1000, 3), (0, 517)] {
                let start = rotated(&rope, from, &head);
                let mut heads: Vec<f32> = [&start[..], &start].concat().iter().map(|&x| x as f32).collect();
                rope.shift(from, to, 10, &mut heads);
                let expected = rotated(&rope, to, &head);
                for (found, expected) in heads.iter().zip(expected.iter().chain(&expected)) {
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "{layout:?}, {from} to {to}");
                }
                assert_eq!(heads[6..10], head[6..], "channels that are not rotated");
            }
        }
    }
}
