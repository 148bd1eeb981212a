//! The command `exlora`.

use std::process::ExitCode;

fn main() -> ExitCode {
    exlora::guard::silence_guarded_panics();
    exlora::cli::run(std::env::args_os()).into()
}
