//! The embedding kernel against the host's arithmetic.

use ::support::Rng;
use exlora::backend::StepRows;
use exlora::backend::cuda::ops::embed::{Embed, EmbedKernel, SQUARES_COLUMNS, TableType};
use half::{bf16, f16};

use crate::step::{Step, assert_close, bits};
use crate::support::{device, download, upload};

const VOCAB: usize = 11;

/// Runs the kernel with that many blocks along the rows; returns `hidden` and `sum_squares`.
fn embed(
    table: &[u8],
    table_type: TableType,
    hidden_size: usize,
    tokens: &[u32],
    blocks: usize,
) -> (Vec<f32>, Vec<f32>) {
    let device = device();
    let rows = tokens.len();
    let step = Step::new(&device, tokens, &vec![Vec::new(); rows], &[], &StepRows::default());
    let table = upload(&device, table);
    let hidden = device.allocate(rows * hidden_size * 4).expect("allocated");
    let sum_squares = device.allocate(rows * hidden_size.div_ceil(SQUARES_COLUMNS) * 4).expect("allocated");
    let arguments = Embed {
        step: step.tables,
        table: table.address(),
        hidden: hidden.address(),
        sum_squares: sum_squares.address(),
        hidden_size: hidden_size as u32,
        table_type: table_type as u32,
        multiplier: 1.5,
        padding: 0,
    };
    EmbedKernel::load(&device).expect("compiled").launch(&arguments, blocks).expect("launched");
    (download(&hidden), download(&sum_squares))
}

#[test]
fn rows_of_a_table_of_any_type_become_the_residual_stream() {
    let tokens = [3, 0, 10, 3, 7];
    for hidden_size in [1, 255, 256, 300, 515] {
        let values = Rng(1).normals(VOCAB * hidden_size, 2.0);
        let f16s: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
        let bf16s: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
        let tables: [(&[u8], TableType, Vec<f32>); 3] = [
            (bytemuck::cast_slice(&f16s), TableType::F16, f16s.iter().map(|value| value.to_f32()).collect()),
            (bytemuck::cast_slice(&bf16s), TableType::Bf16, bf16s.iter().map(|value| value.to_f32()).collect()),
            (bytemuck::cast_slice(&values), TableType::F32, values.clone()),
        ];
        for (bytes, table_type, table) in tables {
            let (hidden, sum_squares) = embed(bytes, table_type, hidden_size, &tokens, 2);
            let want = tokens.map(|token| &table[token as usize * hidden_size..][..hidden_size]).concat();
            let want: Vec<f32> = want.into_iter().map(|value| 1.5 * value).collect();
            assert_eq!(bits(&hidden), bits(&want), "{hidden_size} columns of {table_type:?}");
            let squares = want.chunks(hidden_size).flat_map(|row| row.chunks(SQUARES_COLUMNS));
            let squares: Vec<f64> =
                squares.map(|block| block.iter().map(|&value| f64::from(value).powi(2)).sum()).collect();
            assert_close(&sum_squares, &squares, 1e-6, "sums of squares");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let table = Rng(2).normals(VOCAB * 300, 2.0);
    let tokens = [3, 0, 10, 3, 7];
    let embed = |tokens: &[u32], blocks| embed(bytemuck::cast_slice(&table), TableType::F32, 300, tokens, blocks);
    let (hidden, sum_squares) = embed(&tokens, 5);
    for (row, &token) in tokens.iter().enumerate() {
        let (hidden_alone, sum_squares_alone) = embed(&[token], 1);
        assert_eq!(bits(&hidden[row * 300..][..300]), bits(&hidden_alone));
        assert_eq!(bits(&sum_squares[row * 2..][..2]), bits(&sum_squares_alone));
    }
}
