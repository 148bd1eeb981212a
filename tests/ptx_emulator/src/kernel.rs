//! A kernel that is ready to run.
use std::collections::HashMap;

use crate::instruction::Instruction;
use crate::parser::syntax::SourceLocation;

/// A parameter of a kernel.
pub struct Parameter {
    /// Offset in the parameter space in bytes.
    pub offset: u32,
    /// Size in bytes.
    pub bytes: u32,
}

/// A static variable in shared memory.
#[derive(Clone)]
pub struct SharedVariable {
    /// Name in the PTX text.
    pub name: String,
    /// Address in the shared window.
    pub address: u32,
    /// Size in bytes.
    pub bytes: u32,
}

/// A kernel that is ready to run.
pub struct Kernel {
    /// Name of the entry function.
    pub name: String,
    /// The instructions, ordered so that running the lanes with the smallest program counter first reconverges them.
    pub code: Vec<Instruction>,
    /// The opcode of each instruction as the PTX text writes it.
    pub opcodes: Vec<String>,
    /// Places in the CUDA source, of which instructions refer to one each.
    pub locations: Vec<SourceLocation>,
    /// Targets of indexed branches.
    pub branch_tables: Vec<Vec<u32>>,
    /// Constants, each repeated for 32 lanes.
    pub constants: Vec<u8>,
    /// Register slots that a warp needs.
    pub register_slots: u32,
    /// Predicate registers that a warp needs.
    pub predicates: u32,
    /// The parameters.
    pub parameters: Vec<Parameter>,
    /// Size of the parameter space in bytes.
    pub parameter_bytes: u32,
    /// Bytes of static shared memory as laid out here, with red zones between the variables.
    pub shared_layout_bytes: u32,
    /// Bytes of static shared memory as a GPU lays it out.
    pub static_shared_bytes: u32,
    /// The variables in static shared memory.
    pub shared_variables: Vec<SharedVariable>,
    /// Bytes of local memory of a thread.
    pub local_bytes: u32,
    /// The directive `.maxntid`.
    pub maxntid: Option<[u32; 3]>,
    /// The directive `.reqntid`.
    pub reqntid: Option<[u32; 3]>,
    /// Names of the source files by their number.
    pub files: HashMap<u32, String>,
    /// What looks wrong without being an error.
    pub warnings: Vec<String>,
}

impl Kernel {
    /// The instruction at `pc` with its line in the PTX text and its place in the CUDA source, where known.
    pub fn describe(&self, pc: usize) -> String {
        let instruction = &self.code[pc];
        let mut text = format!("`{}` at PTX line {}", self.opcodes[pc], instruction.line);
        let location = &self.locations[instruction.location as usize];
        if location.line != 0 {
            let file = self.files.get(&location.file).map_or("?", String::as_str);
            text += &format!(", {file}:{}", location.line);
            if location.inlined_at != 0 {
                text += &format!(" (inlined at line {})", location.inlined_at);
            }
        }
        text
    }
}
