//! The pool over the types of the standard library.

#[path = "../../../src/backend/cpu/runtime/gate.rs"]
mod gate;
#[path = "../../../src/backend/cpu/runtime/sync.rs"]
mod sync;
#[path = "../../../src/backend/cpu/runtime/threads.rs"]
mod threads;
