//! The run-time compiler with its cache: none of these tests needs a card.

use std::fs;
use std::path::{Path, PathBuf};

use exlora::ErrorCode;
use exlora::backend::cuda::compiler::cache::{Cache, Key};
use exlora::backend::cuda::compiler::locate::SearchPaths;
use exlora::backend::cuda::compiler::sources::{KernelSource, ONE_VARIANT};
use exlora::backend::cuda::compiler::{Code, Compiler, Target};

use crate::support::find_compiler;

static SOURCE: KernelSource =
    KernelSource { name: "empty.cu", text: "extern \"C\" __global__ void empty() {}", variants: ONE_VARIANT };
const TARGET: Target = Target { code: Code::Cubin, architecture: 90 };

fn compiler(cache: Option<&Path>) -> Compiler {
    find_compiler();
    let cache = cache.map(|folder| Cache::open(folder.to_path_buf()).expect("the cache opens"));
    Compiler::open(&SearchPaths::of_this_process(), 13, cache).expect("the compiler is found")
}

fn bytes(compiler: &Compiler) -> Vec<u8> {
    compiler.compile(&SOURCE, &[], TARGET).expect("compiles").bytes
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path()).collect()
}

#[test]
fn a_source_is_compiled_once_and_then_taken_from_the_cache() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let compiler = compiler(Some(folder.path()));
    let cubin = bytes(&compiler);
    assert!(cubin.starts_with(b"\x7fELF"));
    let [entry] = &entries(folder.path())[..] else { panic!("one entry") };
    assert!(entry.extension().is_some_and(|extension| extension == "cubin"), "{}", entry.display());

    let key = Key::new(&SOURCE, &[], TARGET, &TARGET.options(&[]), compiler.nvrtc().version());
    compiler.cache().expect("there is one").put(&key, b"from the cache").expect("written");
    assert_eq!(bytes(&compiler), b"from the cache");

    fs::write(entry, "damaged").expect("written");
    assert_eq!(bytes(&compiler), cubin, "a damaged entry is compiled again");
    assert_ne!(fs::read(entry).expect("readable"), b"damaged", "and written again");
}

#[test]
fn a_cache_that_cannot_be_written_does_not_stop_the_compiler() {
    let parent = tempfile::tempdir().expect("a temporary folder");
    let folder = parent.path().join("cubins");
    let cached = compiler(Some(&folder));
    fs::remove_dir(&folder).expect("removed");
    assert_eq!(bytes(&cached), bytes(&compiler(None)));
}

#[test]
fn ptx_is_text_that_ends_with_zero_and_names_source_lines() {
    let target = Target { code: Code::Ptx, ..TARGET };
    let image = compiler(None).compile(&SOURCE, &[], target).expect("compiles");
    assert_eq!((image.code, image.bytes.last()), (Code::Ptx, Some(&0)));
    let text = String::from_utf8(image.bytes).expect("text");
    assert!(text.contains(".target sm_90") && text.contains("empty.cu"), "{text}");
}

#[test]
fn a_missing_compiler_is_an_error_that_says_how_to_get_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let not_a_library = folder.path().join("libnvrtc.so.13");
    fs::write(&not_a_library, "no library").expect("written");
    for only in [folder.path().join("absent"), not_a_library] {
        let paths = SearchPaths { only: Some(only.clone()), ..SearchPaths::default() };
        let error = Compiler::open(&paths, 13, None).err().expect("there is no compiler");
        assert_eq!(error.code(), ErrorCode::CudaUnavailable);
        assert_eq!(error.path(), Some(only.as_path()));
        assert!(error.remedy().contains("exlora[cuda]"), "{error}");
    }
}
