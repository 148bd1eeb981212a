//! The linear kernel where its loops go round more than once: slices of many units and several sections, stages and chunks of x
//! that are used again, entries of a slot that need several parts. And how it rounds its input, bit for bit.

use ::support::Rng;
use ::support::random_weights::RandomCodes;
use exlora::quant::QuantGroup;

use crate::linear::{ELEMENTS, Group, Input, bits, group_with_adapters};
use crate::packed::PackedWeight;
use crate::support::device;

#[test]
fn products_of_slices_with_many_units_and_sections_are_right() {
    // 44 units, of which each slice has five or six, and no slice begins where a section does.
    let widths = [(8u8, 7), (6, 7), (5, 7), (4, 9), (3, 7), (2, 7)];
    let groups: Vec<QuantGroup> =
        widths.iter().flat_map(|&(bits, units)| vec![QuantGroup { bits, inputs: 64 }; units]).collect();
    let inputs = 44 * 64;
    for element in ELEMENTS {
        let mut rng = Rng(1);
        let codes = RandomCodes::new(&mut rng, 40, groups.clone(), true, false);
        let coded = PackedWeight::coded(&device(), element, codes);
        let dense = PackedWeight::dense(&device(), element, &mut rng, 20, inputs);
        let group = Group::new(element, &mut rng, vec![coded, dense]);
        // One number of rows for each size of a tile.
        for rows in [3, 12, 20, 40] {
            let x = rng.normals(rows * inputs, 1.0);
            let input_rows: Vec<u32> = (0..rows as u32).collect();
            for input in [Input::Normed, Input::Elements] {
                group.assert_right(input, &x, &input_rows, &[], &format!("{element:?}, {rows} rows, {input:?}"));
            }
        }
    }
}

#[test]
fn elements_that_end_within_a_unit_are_copied_up_to_there_for_rows_in_any_order() {
    // 45 units, of which the last has 24 inputs: rows are whole copies of 8 elements.
    let inputs = 44 * 64 + 24;
    for element in ELEMENTS {
        let mut rng = Rng(5);
        let dense = PackedWeight::dense(&device(), element, &mut rng, 40, inputs);
        let group = Group::new(element, &mut rng, vec![dense]);
        for rows in [1, 7, 15, 31, 64] {
            let x = rng.normals(rows * inputs, 1.0);
            let input_rows: Vec<u32> = (0..rows as u32).rev().collect();
            group.assert_right(Input::Elements, &x, &input_rows, &[], &format!("{element:?}, {rows} rows"));
        }
    }
}

#[test]
fn rows_that_name_a_slot_several_times_have_all_its_products() {
    for element in ELEMENTS {
        let mut rng = Rng(2);
        let group = group_with_adapters(element, &mut rng);
        let x = rng.normals(8 * 160, 1.0);
        // More entries of a slot than the tile has tokens.
        let lists = vec![vec![0, 1, 0, 3, 0, 1]; 8];
        group.assert_right(Input::F32, &x, &[0, 1, 2, 3, 4, 5, 6, 7], &lists, &format!("{element:?}"));
    }
}

#[test]
fn inputs_are_rounded_to_the_nearest_element() {
    for element in ELEMENTS {
        let mut rng = Rng(3);
        let weight = PackedWeight::dense(&device(), element, &mut rng, 32, 128);
        let group = Group::new(element, &mut rng, vec![weight]);
        let x = rng.normals(4 * 128, 1.0);
        // The host rounds the elements.
        let [of_floats, of_elements] =
            [Input::F32, Input::Elements].map(|input| group.launch(input, &x, &[0, 1, 2, 3], &[], None));
        for (of_floats, of_elements) in of_floats.projected.iter().zip(&of_elements.projected) {
            assert_eq!(bits(of_floats), bits(of_elements), "{element:?}");
        }
    }
}
