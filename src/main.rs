//! The command `exlora`.

use std::process::ExitCode;

fn main() -> ExitCode {
    exlora::cli::run(std::env::args_os()).into()
}
