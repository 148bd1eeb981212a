//! The driver interface on PTX text written here: no compiler needed.
use exlora_emulated_driver::*;
use std::ffi::{c_void, CStr, CString};
use std::sync::Mutex;

static ONE: Mutex<()> = Mutex::new(()); // the driver is one per process
const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

fn with(body: &str, f: impl FnOnce(usize)) -> u32 {
    unsafe {
        assert_eq!(cuInit(0), 0);
        let (mut c, mut m, mut k) = (0, 0, 0);
        assert_eq!(cuDevicePrimaryCtxRetain(&mut c, 0), 0);
        cuCtxSetCurrent(c);
        emulated_cuda_clear();
        let t = CString::new(format!("{HEAD}{body}")).unwrap();
        let r = cuModuleLoadData(&mut m, t.as_ptr() as *const c_void);
        if r == 0 {
            assert_eq!(cuModuleGetFunction(&mut k, m, c"k".as_ptr()), 0);
            f(k);
        }
        r
    }
}
fn last() -> String {
    unsafe { CStr::from_ptr(emulated_cuda_last_error()).to_string_lossy().into_owned() }
}
unsafe fn launch(k: usize, grid: u32, block: u32, args: &[u64]) -> u32 {
    let p: Vec<*const c_void> = args.iter().map(|a| a as *const u64 as *const c_void).collect();
    cuLaunchKernel(k, grid, 1, 1, block, 1, 1, 0, 0, p.as_ptr(), std::ptr::null())
}
const INC: &str = ".visible .entry k(.param .u64 p, .param .u32 n) { .reg .pred %q; .reg .b32 %r<6>; .reg .b64 %d<4>;
 ld.param.u64 %d1, [p]; ld.param.u32 %r1, [n]; cvta.to.global.u64 %d1, %d1; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;
 mad.lo.s32 %r4, %r2, %r3, %r4; setp.ge.u32 %q, %r4, %r1; @%q bra E; mul.wide.u32 %d2, %r4, 4; add.s64 %d1, %d1, %d2;
 ld.global.u32 %r5, [%d1]; add.u32 %r5, %r5, %r4; st.global.u32 [%d1], %r5;
E: ret; }";

#[test]
fn runs_and_checks_bounds() {
    let _g = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let r = with(INC, |k| unsafe {
        let mut d = 0;
        assert_eq!(cuMemAlloc_v2(&mut d, 400), 0);
        assert_eq!(cuMemsetD32_v2(d, 7, 100), 0);
        assert_eq!(launch(k, 4, 32, &[d, 100]), 0);
        let mut v = [0u32; 100];
        assert_eq!(cuMemcpyDtoH_v2(v.as_mut_ptr() as *mut c_void, d, 400), 0);
        assert!(v.iter().enumerate().all(|(i, x)| *x == i as u32 + 7));
        // one element too many: exact, and the context stays broken as on a GPU
        assert_eq!(launch(k, 4, 32, &[d, 101]), 700);
        assert!(last().contains("0 byte(s) past the end of allocation") && last().contains("thread (4,0,0)"), "{}", last());
        assert_eq!(cuCtxSynchronize(), 700);
        emulated_cuda_clear();
        assert_eq!(cuMemFree_v2(d), 0);
        assert_eq!(launch(k, 1, 32, &[d, 1]), 700);
        assert!(last().contains("FREED"), "{}", last());
    });
    assert_eq!(r, 0, "{}", last());
}
#[test]
fn launch_numbers_may_repeat() {
    let _g = ONE.lock().unwrap_or_else(|e| e.into_inner());
    with(INC, |k| unsafe {
        let mut d = 0;
        cuMemAlloc_v2(&mut d, 128);
        cuMemsetD32_v2(d, 0, 32);
        // launch numbers repeat: no stale access may be taken for a race; blocks of 16 alternate over the same words
        for i in 0..70_000u32 {
            assert_eq!(launch(k, 1 + (i & 1), 16, &[d, 32]), 0, "{i}: {}", last());
        }
        assert_eq!(cuMemFree_v2(d), 0);
    });
}
#[test]
fn uninitialised_memory_is_found() {
    let _g = ONE.lock().unwrap_or_else(|e| e.into_inner());
    with(INC, |k| unsafe {
        let mut d = 0;
        cuMemAlloc_v2(&mut d, 400);
        assert_eq!(launch(k, 1, 32, &[d, 10]), 719);
        assert!(last().contains("UNINITIALISED global read"), "{}", last());
    });
}
#[test]
fn unknown_instructions_are_named_with_their_line() {
    let _g = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let r = with(".visible .entry k() {\n .reg .b32 %r<3>;\n frobnicate.u32 %r1, %r2;\n ret; }", |_| {});
    assert_eq!(r, 218);
    assert!(last().contains("PTX line 6") && last().contains("frobnicate.u32"), "{}", last());
}
#[test]
fn deadlock_and_divergence() {
    let _g = ONE.lock().unwrap_or_else(|e| e.into_inner());
    // warp 1 leaves, warp 0 waits
    with(".visible .entry k() { .reg .pred %p; .reg .b32 %r1; mov.u32 %r1, %tid.x; setp.gt.u32 %p, %r1, 31; @%p bra E; bar.sync 0; E: ret; }", |k| unsafe {
        assert_eq!(launch(k, 1, 64, &[]), 719);
        assert!(last().contains("DEADLOCK") && last().contains("1 warp(s) have exited"), "{}", last());
    });
    with(".visible .entry k() { .reg .pred %p; .reg .b32 %r1; mov.u32 %r1, %tid.x; setp.gt.u32 %p, %r1, 15; @%p bra E; bar.sync 0; E: bar.sync 0; ret; }", |k| unsafe {
        assert_eq!(launch(k, 1, 32, &[]), 719);
        assert!(last().contains("DIVERGENT BARRIER"), "{}", last());
    });
}
#[test]
fn lanes_reconverge_after_loops_with_breaks() {
    let _g = ONE.lock().unwrap_or_else(|e| e.into_inner());
    // every lane loops tid times, blocks laid out backwards; the warp must be whole again at the barrier
    let r = with(".visible .entry k(.param .u64 p) { .reg .pred %p; .reg .b32 %r<4>; .reg .b64 %d<3>; ld.param.u64 %d1, [p]; mov.u32 %r1, %tid.x; mov.u32 %r2, 0; bra HEAD;
OUT: bar.sync 0; vote.sync.ballot.b32 %r3, %p, 0xffffffff; mul.wide.u32 %d2, %r1, 4; add.s64 %d1, %d1, %d2; st.global.u32 [%d1], %r2; ret;
BODY: add.u32 %r2, %r2, 1; bra HEAD;
HEAD: setp.ge.u32 %p, %r2, %r1; @%p bra OUT; bra BODY; }", |k| unsafe {
        let mut d = 0;
        cuMemAlloc_v2(&mut d, 128);
        assert_eq!(launch(k, 1, 32, &[d]), 0, "{}", last());
        let mut v = [0u32; 32];
        cuMemcpyDtoH_v2(v.as_mut_ptr() as *mut c_void, d, 128);
        assert!(v.iter().enumerate().all(|(i, x)| *x == i as u32), "{v:?}");
    });
    assert_eq!(r, 0, "{}", last());
}
