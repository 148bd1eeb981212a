//! What the backend says about the base's weights, which are packed on the device, to whoever prepares adapters.

use exlora::sites::SitePart;
use exlora::tensor::DType;
use support::Rng;
use support::harness::{Harness, Member, Tensor, Weight, bits, oracle, random_member};

use crate::compute::devices;

/// A tensor of those values in float16, and one that differs from it in one place.
fn with_a_change(shape: &[usize], values: &[f32], at: usize) -> [Tensor; 2] {
    let mut changed = values.to_vec();
    changed[at] += 1.0;
    [values, &changed].map(|values| Tensor::new(DType::F16, shape, values))
}

#[test]
fn a_copy_of_the_base_is_told_from_what_differs_in_one_value() {
    let (outputs, inputs) = (37, 70);
    let mut rng = Rng(1);
    let (device, _) = devices()[0];
    let mut harness = Harness::open(device);
    // The last value is in the last strip and unit, which are not full.
    let [weight, other_weight] = with_a_change(&[outputs, inputs], &rng.normals(outputs * inputs, 1.0), 37 * 70 - 1);
    let [bias, other_bias] = with_a_change(&[outputs], &rng.normals(outputs, 1.0), 36);
    let [table, other_table] = with_a_change(&[outputs, inputs], &rng.normals(outputs * inputs, 1.0), 37 * 70 - 1);
    let [norm, other_norm] = with_a_change(&[inputs], &rng.normals(inputs, 1.0), 69);
    let (_, sites) = harness.group(&[Member { weight: Weight::Dense(weight.clone()), bias: Some(bias.clone()) }]);
    let (_, table_site) = harness.table(&table);
    let (_, norm_site) = harness.norm_weight_of(&norm);
    let adapters = &harness.backend().adapters;
    for (site, part, same, other) in [
        (sites[0], SitePart::Weight, weight, other_weight),
        (sites[0], SitePart::Bias, bias, other_bias),
        (table_site, SitePart::Weight, table, other_table),
        (norm_site, SitePart::Weight, norm, other_norm),
    ] {
        assert!(adapters.equals_base(site, part, same.view()), "{part:?} of {site:?}");
        assert!(!adapters.equals_base(site, part, other.view()), "{part:?} of {site:?}");
    }
}

#[test]
fn the_weight_that_the_device_multiplies_is_that_of_the_reference() {
    for seed in 0..12 {
        let mut rng = Rng(seed);
        let (outputs, inputs) = (1 + rng.below(60), 1 + rng.below(200));
        let mut member = random_member(&mut rng, inputs, outputs);
        // Half precision holds floats that are stored in it.
        if let Weight::Dense(tensor) = &mut member.weight {
            *tensor = Tensor::new(DType::F16, &[outputs, inputs], &rng.normals(outputs * inputs, 1.0));
        }
        let [found, expected] = [devices()[0].0, oracle()].map(|device| {
            let mut harness = Harness::open(device);
            let (_, sites) = harness.group(std::slice::from_ref(&member));
            harness.backend().adapters.dense_weight(sites[0]).expect("the weight is unpacked")
        });
        assert_eq!(bits(&found), bits(&expected), "seed {seed}");
    }
}
