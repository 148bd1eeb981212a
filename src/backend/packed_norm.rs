//! Norms as operations read them: weights in f32 with the family's offset added, then biases. What a checkpoint stores and what
//! an adapter brings in its place go through the same code, so both are in the convention of the model's files.

use super::types::NormSource;
use crate::adapter::delta::SiteDelta;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::SitePart;
use crate::tensor::{Tensor, TensorView};

/// The form of a norm's packed values: `[weights, biases]`, each as many as the norm has channels; biases only where it has them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PackedNorm {
    /// Shape of the stored weight: `[width]` or `[heads, head_dim]`.
    shape: Vec<usize>,
    has_bias: bool,
    offset: f32,
}

impl PackedNorm {
    /// The form of a norm.
    ///
    /// # Errors
    /// `internal` if it holds no floats, or its bias does not fit its weight.
    pub(crate) fn of(source: &NormSource<'_>) -> Result<Self> {
        let tensors = || [Some(&source.weight), source.bias.as_ref()].into_iter().flatten();
        if let Some(other) = tensors().find(|tensor| !tensor.dtype().is_float()) {
            return Err(Error::new(ErrorCode::Internal, "a norm's weight must hold floats").with_found(other.dtype()));
        }
        if tensors().any(|tensor| tensor.shape() != source.weight.shape()) {
            return Err(Error::new(ErrorCode::Internal, "a norm's bias does not fit its weight"));
        }
        Ok(Self { shape: source.weight.shape().to_vec(), has_bias: source.bias.is_some(), offset: source.offset })
    }

    /// Shape of the stored weight.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Channels that it has weights for.
    pub(crate) fn width(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has biases.
    pub(crate) fn has_bias(&self) -> bool {
        self.has_bias
    }

    /// Number of packed values.
    pub(crate) fn len(&self) -> usize {
        self.width() * if self.has_bias { 2 } else { 1 }
    }

    /// Packs the stored tensors into `out`, [`PackedNorm::len`] values.
    pub(crate) fn pack(&self, source: &NormSource<'_>, out: &mut [f32]) {
        let (weights, biases) = out.split_at_mut(self.width());
        self.read_weights(&source.weight, weights);
        if let Some(bias) = &source.bias {
            bias.read_f32(0..bias.len(), biases);
        }
    }

    /// Packs what an adapter brings into `out`; what it does not bring is that of `base`.
    ///
    /// # Errors
    /// `internal` if a part does not fit, or is a bias that the norm does not have.
    pub(crate) fn replace(&self, base: &[f32], delta: &SiteDelta<'_>, out: &mut [f32]) -> Result<()> {
        let fits = |tensor: &Tensor<'_>| tensor.shape() == self.shape && tensor.dtype().is_float();
        if !delta.tensors().all(fits) || (delta.bias.is_some() && !self.has_bias) {
            return Err(Error::new(ErrorCode::Internal, "what an adapter brings does not fit a norm"));
        }
        out.copy_from_slice(base);
        let (weights, biases) = out.split_at_mut(self.width());
        if let Some(weight) = &delta.weight {
            self.read_weights(&weight.view(), weights);
        }
        if let Some(bias) = &delta.bias {
            bias.view().read_f32(0..bias.view().len(), biases);
        }
        Ok(())
    }

    /// Whether packed values are what these stored ones of a part would be packed to.
    pub(crate) fn equals(&self, packed: &[f32], part: SitePart, values: &TensorView<'_>) -> bool {
        if !values.dtype().is_float() || values.shape() != self.shape {
            return false;
        }
        let (weights, biases) = packed.split_at(self.width());
        match part {
            SitePart::Weight => values.to_f32().iter().zip(weights).all(|(value, held)| value + self.offset == *held),
            SitePart::Bias => self.has_bias && values.to_f32() == biases,
        }
    }

    fn read_weights(&self, stored: &TensorView<'_>, out: &mut [f32]) {
        stored.read_f32(0..stored.len(), out);
        if self.offset != 0.0 {
            out.iter_mut().for_each(|weight| *weight += self.offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sites::SiteId;

    #[test]
    fn what_an_adapter_brings_gets_the_offset_of_the_base_and_keeps_the_rest() {
        let [weight, bias, other] =
            [[0.5, -0.25], [3.0, 4.0], [1.0, 0.0]].map(|values| Tensor::from_f32(&[2], &values));
        let source = NormSource { site: SiteId(0), weight: weight.view(), bias: Some(bias.view()), offset: 1.0 };
        let norm = PackedNorm::of(&source).expect("a norm");
        let (mut base, mut replaced) = ([0.0; 4], [0.0; 4]);
        norm.pack(&source, &mut base);
        assert_eq!(base, [1.5, 0.75, 3.0, 4.0]);
        let delta = SiteDelta { weight: Some(other.clone()), ..SiteDelta::at(SiteId(0)) };
        norm.replace(&base, &delta, &mut replaced).expect("it fits");
        assert_eq!(replaced, [2.0, 1.0, 3.0, 4.0]);
        let delta = SiteDelta { bias: Some(other), ..SiteDelta::at(SiteId(0)) };
        norm.replace(&base, &delta, &mut replaced).expect("it fits");
        assert_eq!(replaced, [1.5, 0.75, 1.0, 0.0]);
    }

    #[test]
    fn a_copy_of_the_stored_weight_equals_it_and_nothing_else_does() {
        let (weight, other) = (Tensor::from_f32(&[2], &[0.5, -0.25]), Tensor::from_f32(&[2], &[1.5, 0.75]));
        let source = NormSource { offset: 1.0, ..NormSource::plain(SiteId(0), weight.view()) };
        let norm = PackedNorm::of(&source).expect("a norm");
        let mut packed = vec![0.0; norm.len()];
        norm.pack(&source, &mut packed);
        assert!(norm.equals(&packed, SitePart::Weight, &weight.view()));
        assert!(!norm.equals(&packed, SitePart::Weight, &other.view()));
        assert!(!norm.equals(&packed, SitePart::Bias, &weight.view()));
    }

    #[test]
    fn a_bias_of_another_shape_is_refused() {
        let (weight, bias) = (Tensor::from_f32(&[2], &[0.5, -0.25]), Tensor::from_f32(&[1], &[1.5]));
        let source = NormSource { bias: Some(bias.view()), ..NormSource::plain(SiteId(0), weight.view()) };
        assert_eq!(PackedNorm::of(&source).expect_err("refused").code(), ErrorCode::Internal);
    }
}
