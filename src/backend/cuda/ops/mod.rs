//! Kernels by family: the argument of each, how many blocks it is launched with, and the launch.
//!
//! Every argument struct has the fields of its twin in `cuda/`, where shapes and formulas are told; addresses are those of device
//! memory. Grids end with rows, and kernels loop over the rows beyond their grid.

pub mod attention;
pub mod ceilings;
pub mod embed;
pub mod expand;
pub mod kv_layout;
pub mod linear;
pub mod norm_elements;
pub mod norms;
pub mod repack;
pub mod rows;

/// Most blocks along the second and third dimension of a grid.
const MAX_GRID_ROWS: usize = 65535;

/// Blocks along a dimension of a grid that kernels loop over.
fn grid_rows(rows: usize) -> u32 {
    rows.clamp(1, MAX_GRID_ROWS) as u32
}
