//! The C interface of the driver: the functions cudarc calls, with the real driver's error codes.
#![allow(non_snake_case, clippy::missing_safety_doc)]
use exlora_ptx_emulator::exec::{self, Config, Fault, Stats};
use exlora_ptx_emulator::instruction::{Class, StateSpace};
use exlora_ptx_emulator::kernel::Kernel;
use exlora_ptx_emulator::parser::syntax::InitialValue;
use exlora_ptx_emulator::mem::*;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_char, c_void, CStr, CString};
use std::sync::{Arc, Mutex, MutexGuard};

type Res = u32;
type H = usize; // every handle is a number
type Ptr = u64;

const OK: Res = 0;
const INVALID_VALUE: Res = 1;
const OOM: Res = 2;
const NOT_INIT: Res = 3;
const INVALID_DEVICE: Res = 101;
const INVALID_CONTEXT: Res = 201;
const NO_BINARY: Res = 209;
const INVALID_PTX: Res = 218;
const INVALID_HANDLE: Res = 400;
const NOT_FOUND: Res = 500;
const NOT_READY: Res = 600;
const OUT_OF_RESOURCES: Res = 701;
const NOT_SUPPORTED: Res = 801;
const CAPTURE_UNSUPPORTED: Res = 900;
const CAPTURE_INVALIDATED: Res = 901;
const CAPTURE_UNMATCHED: Res = 903;
const CAPTURE_UNJOINED: Res = 904;

#[derive(Clone)]
struct KLaunch {
    f: H,
    grid: [u32; 3],
    block: [u32; 3],
    smem: u32,
    params: Vec<u8>,
    coop: bool,
}
#[derive(Clone)]
enum Op {
    Kernel(KLaunch),
    H2D { dst: Ptr, src: usize, n: usize, snap: Option<Arc<Vec<u8>>> },
    D2H { dst: usize, src: Ptr, n: usize },
    D2D { dst: Ptr, src: Ptr, n: usize },
    Set { dst: Ptr, v: u32, w: usize, n: usize },
    Free(Ptr),
    Host(usize, usize),
    Record(H, u64),
    Wait(H, u64),
}
#[derive(Default)]
struct Stream {
    queue: std::collections::VecDeque<Op>,
    capture: Option<H>,
    origin: bool,
    joined: bool,
    flags: u32,
    prio: i32,
}
#[derive(Default)]
struct Event {
    stamp: u64,     // last record submitted
    done: u64,      // last record executed
    stream: H,
    time: Option<std::time::Instant>,
    capture: Option<(H, H)>, // graph, stream
    dead: bool,               // destroyed, kept for the waits that name it
}
struct Module {
    globals: HashMap<String, (u64, u64)>,
    funcs: Vec<H>,
}
struct Function {
    k: Arc<Kernel>,
    max_dyn: u32,
    image_cc: i32,
}
#[derive(Default)]
struct Graph {
    ops: Vec<Op>,
    bad: bool,
}
struct State {
    mem: Mem,
    cfg: Config,
    lazy: bool,
    cc: (i32, i32),
    sms: i32,
    ids: H,
    streams: BTreeMap<H, Stream>,
    events: HashMap<H, Event>,
    modules: HashMap<H, Module>,
    funcs: HashMap<H, Function>,
    graphs: HashMap<H, Graph>,
    execs: HashMap<H, Vec<Op>>,
    pinned: BTreeMap<usize, usize>,
    ctx_refs: u32,
    sticky: Option<Res>,
    messages: HashMap<Res, CString>,
    last: CString,
    serial: u16,
    stats: Stats,
    per_kernel: BTreeMap<String, Stats>,
    warnings: Vec<String>,
    verbose: bool,
    capture_any: usize,
}
static STATE: Mutex<Option<State>> = Mutex::new(None);
const CTX: H = 0xc0de_0000;
thread_local! { static CURRENT: std::cell::Cell<H> = const { std::cell::Cell::new(0) }; }

fn env(n: &str) -> Option<String> {
    std::env::var(format!("EMULATED_CUDA_{n}")).ok()
}
fn config() -> Config {
    let mut c = Config { order: 0, seed: 1, eager: false, race: true, grace: true, init: true, exit_barrier: false, sites: true, stats: false, trunc: 0, max_instr: 300_000_000 };
    for k in ["ORDER", "ASYNC", "RACE", "INIT", "EXIT_BARRIER", "SITES", "STATS", "MMA", "MAX_INSTR"] {
        if let Some(v) = env(k) {
            set(&mut c, &k.to_lowercase(), &v);
        }
    }
    c
}
fn set(c: &mut Config, k: &str, v: &str) -> bool {
    let on = !matches!(v, "0" | "off" | "no");
    match k {
        "order" => match v {
            "fwd" => c.order = 0,
            "rev" => c.order = 1,
            _ => {
                c.order = 2;
                c.seed = v.trim_start_matches("rnd").trim_start_matches(':').parse().unwrap_or(1);
            }
        },
        "async" => c.eager = v == "eager",
        "race" => {
            c.race = on;
            c.grace = on && v != "shared";
        }
        "init" => c.init = on,
        "exit_barrier" => c.exit_barrier = v == "allow",
        "sites" => c.sites = on,
        "stats" => c.stats = on,
        "mma" => c.trunc = match v { "trunc8" => 8, "trunc16" => 16, _ => 0 },
        "max_instr" => c.max_instr = v.parse().unwrap_or(c.max_instr),
        _ => return false,
    }
    true
}

impl State {
    fn new() -> Result<State, String> {
        let total: u64 = env("MEM_MB").and_then(|v| v.parse().ok()).unwrap_or(8192) << 20;
        let cc = env("CC").unwrap_or("8.0".into());
        let (a, b) = cc.split_once('.').unwrap_or((&cc, "0"));
        let mut s = State {
            mem: Mem::new(total)?,
            cfg: config(),
            lazy: env("STREAMS").map(|v| v == "lazy").unwrap_or(false),
            cc: (a.parse().unwrap_or(8), b.parse().unwrap_or(0)),
            sms: env("SMS").and_then(|v| v.parse().ok()).unwrap_or(108),
            ids: 0x1000,
            streams: BTreeMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            funcs: HashMap::new(),
            graphs: HashMap::new(),
            execs: HashMap::new(),
            pinned: BTreeMap::new(),
            ctx_refs: 0,
            sticky: None,
            messages: HashMap::new(),
            last: CString::default(),
            serial: 0,
            stats: Stats::default(),
            per_kernel: BTreeMap::new(),
            warnings: vec![],
            verbose: env("QUIET").is_none(),
            capture_any: 0,
        };
        for h in [0, 1, 2] {
            s.streams.insert(h, Stream::default()); // null, legacy, per-thread
        }
        Ok(s)
    }
    fn id(&mut self) -> H {
        self.ids += 16;
        self.ids
    }
    fn note(&mut self, code: Res, m: String) -> Res {
        if self.verbose {
            eprintln!("[emulated CUDA] {} ({code}): {m}", error_name(code));
        }
        let c = CString::new(format!("{}: {m}", error_text(code)).replace('\0', "")).unwrap();
        self.last = c.clone();
        self.messages.insert(code, c);
        code
    }
    fn warn(&mut self, m: String) {
        if self.verbose {
            eprintln!("[emulated CUDA] {m}");
        }
        self.warnings.push(m);
    }
    fn range(&mut self, p: Ptr, n: usize, what: &str) -> Res {
        if n == 0 || self.mem.valid(p, n as u64) {
            return OK;
        }
        let d = self.mem.describe(p);
        let e = self.mem.describe(p + n as u64 - 1);
        self.note(INVALID_VALUE, format!("{what}: {n} bytes at {p:#x} are not inside one allocation; start: {d}; end: {e}"))
    }
    fn submit(&mut self, s: H, op: Op) -> Res {
        let Some(st) = self.streams.get_mut(&s) else { return INVALID_HANDLE };
        if let Some(g) = st.capture {
            self.graphs.get_mut(&g).unwrap().ops.push(op);
            return OK;
        }
        if let Some(e) = self.sticky {
            return e;
        }
        if self.lazy {
            st.queue.push_back(op);
            return OK;
        }
        self.exec(&op)
    }
    /// Run a stream's queue, and of other streams only what it waits for.
    fn drain(&mut self, s: H) -> Res {
        while let Some(op) = self.streams.get_mut(&s).and_then(|q| q.queue.pop_front()) {
            if let Op::Wait(e, stamp) = op {
                while self.events.get(&e).map(|v| v.done < stamp).unwrap_or(false) {
                    let o = self.events[&e].stream;
                    let Some(op) = self.streams.get_mut(&o).and_then(|q| q.queue.pop_front()) else { break };
                    let r = self.exec(&op);
                    if r != OK {
                        return r;
                    }
                }
                continue;
            }
            let r = self.exec(&op);
            if r != OK {
                return r;
            }
        }
        self.sticky.unwrap_or(OK)
    }
    /// All streams, the youngest first: the order least like the program's.
    fn drain_all(&mut self) -> Res {
        for s in self.streams.keys().rev().copied().collect::<Vec<_>>() {
            let r = self.drain(s);
            if r != OK {
                return r;
            }
        }
        self.sticky.unwrap_or(OK)
    }
    fn exec(&mut self, op: &Op) -> Res {
        if let Some(e) = self.sticky {
            return e;
        }
        match op {
            Op::Kernel(k) => self.kernel(k),
            Op::H2D { dst, src, n, snap } => {
                let r = self.range(*dst, *n, "copy to the device");
                if r != OK {
                    return r;
                }
                unsafe {
                    let p = snap.as_ref().map(|v| v.as_ptr()).unwrap_or(*src as *const u8);
                    std::ptr::copy_nonoverlapping(p, *dst as *mut u8, *n);
                }
                self.mem.set_shadow(*dst, *n as u64, S_INIT);
                OK
            }
            Op::D2H { dst, src, n } => {
                let r = self.range(*src, *n, "copy to the host");
                if r != OK {
                    return r;
                }
                if self.cfg.init {
                    if let Some(k) = self.mem.uninit(*src, *n as u64) {
                        let d = self.mem.describe(*src + k);
                        self.warn(format!("warning: copy to the host reads uninitialised memory: {d}"));
                    }
                }
                unsafe { std::ptr::copy_nonoverlapping(*src as *const u8, *dst as *mut u8, *n) };
                OK
            }
            Op::D2D { dst, src, n } => {
                for (p, w) in [(*src, "source of a device copy"), (*dst, "destination of a device copy")] {
                    let r = self.range(p, *n, w);
                    if r != OK {
                        return r;
                    }
                }
                unsafe {
                    std::ptr::copy(*src as *const u8, *dst as *mut u8, *n);
                    std::ptr::copy(self.mem.shadow(*src), self.mem.shadow(*dst), *n);
                }
                OK
            }
            Op::Set { dst, v, w, n } => {
                let r = self.range(*dst, *n * *w, "memset");
                if r != OK {
                    return r;
                }
                unsafe {
                    match w {
                        1 => std::ptr::write_bytes(*dst as *mut u8, *v as u8, *n),
                        2 => (0..*n).for_each(|k| *(*dst as *mut u16).add(k) = *v as u16),
                        _ => (0..*n).for_each(|k| *(*dst as *mut u32).add(k) = *v),
                    }
                }
                self.mem.set_shadow(*dst, (*n * *w) as u64, S_INIT);
                OK
            }
            Op::Free(p) => {
                if self.mem.free(*p) {
                    OK
                } else {
                    let d = self.mem.describe(*p);
                    self.note(INVALID_VALUE, format!("free of {p:#x}, which is not an allocation: {d}"))
                }
            }
            Op::Host(f, a) => {
                let f: extern "C" fn(*mut c_void) = unsafe { std::mem::transmute(*f) };
                f(*a as *mut c_void);
                OK
            }
            Op::Record(e, stamp) => {
                if let Some(v) = self.events.get_mut(e) {
                    v.done = *stamp;
                    v.time = Some(std::time::Instant::now());
                }
                OK
            }
            Op::Wait(..) => OK,
        }
    }
    fn kernel(&mut self, q: &KLaunch) -> Res {
        let Some(f) = self.funcs.get(&q.f) else { return self.note(INVALID_HANDLE, "launch of a function whose module has been unloaded".into()) };
        let k = f.k.clone();
        if self.serial == u16::MAX {
            self.mem.forget_accesses();
            self.serial = 0;
        }
        self.serial += 1;
        let cfg = self.cfg.clone();
        let mut ws = 0;
        if q.coop {
            let Some(a) = self.mem.alloc(256, "grid workspace") else { return OOM };
            unsafe { std::ptr::write_bytes(a as *mut u8, 0, 256) };
            self.mem.set_shadow(a, 256, S_INIT);
            ws = a;
        }
        let mut l = exec::Launch {
            k: &k,
            mem: &mut self.mem,
            cfg: &cfg,
            grid: q.grid,
            block: q.block,
            dyn_smem: q.smem,
            params: &q.params,
            serial: self.serial,
            stats: Stats::default(),
            counts: vec![],
            released: HashMap::new(),
            rng: cfg.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            out: String::new(),
            workspace: ws,
        };
        let r = exec::run(&mut l);
        if ws != 0 {
            l.mem.free(ws);
        }
        let (s, out) = (l.stats.clone(), std::mem::take(&mut l.out));
        add(&mut self.stats, &s);
        add(self.per_kernel.entry(k.name.clone()).or_default(), &s);
        for x in out.lines() {
            self.warn(x.into());
        }
        match r {
            Ok(()) => OK,
            Err(Fault { code, msg }) => {
                self.sticky = Some(code);
                self.note(code, msg)
            }
        }
    }
    fn launch(&mut self, f: H, grid: [u32; 3], block: [u32; 3], smem: u32, stream: H, params: *const *const c_void, extra: *const *const c_void, coop: bool) -> Res {
        let Some(fu) = self.funcs.get(&f) else { return INVALID_HANDLE };
        let k = fu.k.clone();
        let (max_dyn, stat) = (fu.max_dyn, k.static_shared_bytes);
        let n = block[0] as u64 * block[1] as u64 * block[2] as u64;
        let nm = &k.name;
        if grid.contains(&0) || block.contains(&0) || n > 1024 || block[2] > 64 || grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
            return self.note(INVALID_VALUE, format!("launch of {nm}: grid {grid:?} block {block:?} is outside the limits"));
        }
        if let Some(m) = k.maxntid {
            if n > m[0] as u64 * m[1] as u64 * m[2] as u64 {
                return self.note(OUT_OF_RESOURCES, format!("launch of {nm}: {n} threads, __launch_bounds__ allows {}", m[0] * m[1] * m[2]));
            }
        }
        if let Some(m) = k.reqntid {
            if m != block {
                return self.note(INVALID_VALUE, format!("launch of {nm}: block {block:?}, the kernel requires {m:?}"));
            }
        }
        if smem + stat > 48 << 10 && smem > max_dyn {
            return self.note(INVALID_VALUE, format!("launch of {nm}: {smem} bytes of dynamic shared memory (+ {stat} static) without the opt-in attribute (allowed: {max_dyn})"));
        }
        let mut buf = vec![0u8; k.parameter_bytes as usize];
        unsafe {
            if !extra.is_null() {
                // CU_LAUNCH_PARAM_BUFFER_POINTER 1, SIZE 2, END 0
                let (mut p, mut size, mut j) = (std::ptr::null(), None, 0);
                loop {
                    match *extra.add(j) as usize {
                        1 => p = *extra.add(j + 1) as *const u8,
                        2 => size = Some(*(*extra.add(j + 1) as *const usize)),
                        _ => break,
                    }
                    j += 2;
                }
                if size != Some(buf.len()) || p.is_null() {
                    return self.note(INVALID_VALUE, format!("launch of {nm}: the parameter buffer has {size:?} bytes, the kernel takes {}", buf.len()));
                }
                std::ptr::copy_nonoverlapping(p, buf.as_mut_ptr(), buf.len());
            } else if !k.parameters.is_empty() {
                if params.is_null() {
                    return self.note(INVALID_VALUE, format!("launch of {nm}: no parameters, the kernel takes {}", k.parameters.len()));
                }
                for (j, p) in k.parameters.iter().enumerate() {
                    let mut a = [0usize];
                    if !peek(params.add(j) as usize, a.as_mut_ptr() as *mut u8, 8) || !peek(a[0], buf.as_mut_ptr().add(p.offset as usize), p.bytes as usize) {
                        return self.note(INVALID_VALUE, format!("launch of {nm}: parameter {j} ({} bytes) of {}: the pointer {:#x} cannot be read (too few parameters?)", p.bytes, k.parameters.len(), a[0]));
                    }
                }
            }
        }
        self.submit(stream, Op::Kernel(KLaunch { f, grid, block, smem, params: buf, coop }))
    }
    fn pinned_range(&self, p: usize, n: usize) -> bool {
        self.pinned.range(..=p).next_back().map(|(s, z)| p + n <= s + z).unwrap_or(false)
    }
    /// Calls that synchronise are not allowed while a capture is active.
    fn in_capture(&mut self) -> Option<Res> {
        if self.capture_any == 0 {
            return None;
        }
        for s in self.streams.values() {
            if let Some(g) = s.capture {
                self.graphs.get_mut(&g).unwrap().bad = true;
            }
        }
        Some(self.note(CAPTURE_UNSUPPORTED, "a call that synchronises or allocates was made while a stream is being captured".into()))
    }
}
extern "C" {
    fn process_vm_readv(pid: i32, l: *const [usize; 2], nl: usize, r: *const [usize; 2], nr: usize, f: usize) -> isize;
    fn getpid() -> i32;
    fn posix_memalign(p: *mut *mut c_void, a: usize, n: usize) -> i32;
    fn free(p: *mut c_void);
}
/// Read memory that may not exist.
unsafe fn peek(a: usize, d: *mut u8, n: usize) -> bool {
    process_vm_readv(getpid(), &[d as usize, n], 1, &[a, n], 1, 0) == n as isize
}
fn add(a: &mut Stats, b: &Stats) {
    a.launches += b.launches;
    a.warp_instr += b.warp_instr;
    a.lane_instr += b.lane_instr;
    for k in 0..18 {
        a.class[k] += b.class[k];
    }
    a.ld_bytes += b.ld_bytes;
    a.st_bytes += b.st_bytes;
    a.sectors += b.sectors;
    a.async_bytes += b.async_bytes;
    a.bank_extra += b.bank_extra;
    a.shared_acc += b.shared_acc;
    a.mma += b.mma;
    a.barriers += b.barriers;
    a.secs += b.secs;
}
fn error_name(c: Res) -> &'static str {
    match c {
        0 => "CUDA_SUCCESS",
        1 => "CUDA_ERROR_INVALID_VALUE",
        2 => "CUDA_ERROR_OUT_OF_MEMORY",
        3 => "CUDA_ERROR_NOT_INITIALIZED",
        101 => "CUDA_ERROR_INVALID_DEVICE",
        200 => "CUDA_ERROR_INVALID_IMAGE",
        201 => "CUDA_ERROR_INVALID_CONTEXT",
        209 => "CUDA_ERROR_NO_BINARY_FOR_GPU",
        218 => "CUDA_ERROR_INVALID_PTX",
        400 => "CUDA_ERROR_INVALID_HANDLE",
        500 => "CUDA_ERROR_NOT_FOUND",
        600 => "CUDA_ERROR_NOT_READY",
        700 => "CUDA_ERROR_ILLEGAL_ADDRESS",
        701 => "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        702 => "CUDA_ERROR_LAUNCH_TIMEOUT",
        710 => "CUDA_ERROR_ASSERT",
        715 => "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        716 => "CUDA_ERROR_MISALIGNED_ADDRESS",
        719 => "CUDA_ERROR_LAUNCH_FAILED",
        801 => "CUDA_ERROR_NOT_SUPPORTED",
        900 => "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        901 => "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        903 => "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
        904 => "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
        _ => "CUDA_ERROR_UNKNOWN",
    }
}
fn error_text(c: Res) -> &'static str {
    match c {
        0 => "no error",
        1 => "invalid argument",
        2 => "out of memory",
        3 => "initialization error",
        101 => "invalid device ordinal",
        201 => "invalid device context",
        209 => "no kernel image is available for execution on the device",
        218 => "a PTX JIT compilation failed",
        400 => "invalid resource handle",
        500 => "named symbol not found",
        600 => "device not ready",
        700 => "an illegal memory access was encountered",
        701 => "too many resources requested for launch",
        702 => "the launch timed out and was terminated",
        710 => "device-side assert triggered",
        715 => "an illegal instruction was encountered",
        716 => "misaligned address",
        719 => "unspecified launch failure",
        801 => "operation not supported",
        _ => "unknown error",
    }
}
fn lock() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(|e| e.into_inner())
}
macro_rules! st {
    ($s:ident) => {
        let mut guard = lock();
        let Some($s) = guard.as_mut() else { return NOT_INIT };
    };
}
macro_rules! ctx {
    ($s:ident) => {
        st!($s);
        if CURRENT.get() == 0 {
            return INVALID_CONTEXT;
        }
    };
}
macro_rules! api {
    ($(fn $n:ident($($a:ident: $t:ty),*) $b:block)*) => {$(
        #[no_mangle] pub unsafe extern "C" fn $n($($a: $t),*) -> Res { $b }
    )*};
}
fn streamh(s: H) -> H {
    s
}

api! {
    fn cuInit(_f: u32) {
        let mut g = lock();
        if g.is_none() {
            match State::new() {
                Ok(s) => *g = Some(s),
                Err(e) => { eprintln!("[emulated CUDA] {e}"); return OOM }
            }
        }
        OK
    }
    // NVRTC opens libcuda.so.1 by itself and asks for this; without the symbol it crashes, with an error it goes on.
    fn cuGetExportTable(t: *mut *const c_void, _id: *const c_void) { if !t.is_null() { *t = std::ptr::null() } NOT_FOUND }
    fn cuDriverGetVersion(v: *mut i32) { *v = 12000; OK }
    fn cuDeviceGetCount(n: *mut i32) { *n = 1; OK }
    fn cuDeviceGet(d: *mut i32, o: i32) { if o != 0 { return INVALID_DEVICE } *d = 0; OK }
    fn cuDeviceGetName(p: *mut c_char, n: i32, _d: i32) {
        let s = b"Emulated CUDA device\0";
        for k in 0..(n as usize).min(s.len()) { *p.add(k) = s[k] as c_char }
        OK
    }
    fn cuDeviceGetUuid(u: *mut [u8; 16], _d: i32) { *u = *b"emulated-cuda-00"; OK }
    fn cuDeviceGetUuid_v2(u: *mut [u8; 16], _d: i32) { *u = *b"emulated-cuda-00"; OK }
    fn cuDeviceTotalMem_v2(n: *mut usize, _d: i32) { st!(s); *n = s.mem.total as usize; OK }
    fn cuDeviceGetAttribute(v: *mut i32, a: u32, _d: i32) {
        st!(s);
        let optin = match s.cc { (8, 6 | 9) => 99 << 10, (8, _) => 163 << 10, (7, 5) => 64 << 10, (c, _) if c >= 9 => 227 << 10, _ => 96 << 10 };
        *v = match a {
            1 => 1024, 2 | 3 => 1024, 4 => 64, 5 => i32::MAX, 6 | 7 => 65535, 8 => 48 << 10, 9 => 64 << 10, 10 => 32, 11 => i32::MAX,
            12 | 82 => 65536, 13 => 1_410_000, 14 => 512, 15 => 1, 16 => s.sms, 17 | 18 | 20 | 32 => 0, 19 => 1, 31 => 1, 36 => 1_215_000, 37 => 5120,
            38 => 40 << 20, 39 => if s.cc.0 == 8 && s.cc.1 > 0 { 1536 } else { 2048 }, 40 => 3, 41 => 1, 75 => s.cc.0, 76 => s.cc.1, 78 => 1, 79 | 80 => 1,
            81 => optin + 1024, 83 => 1, 87 => 2, 90 => 1, 95 => 1, 97 => optin, 99 => 1, 106 => 32, 108 => 30 << 20, 111 => 1024, 115 => 1,
            120 => (s.cc.0 >= 9) as i32, _ => 0,
        };
        OK
    }
    fn cuDeviceComputeCapability(a: *mut i32, b: *mut i32, _d: i32) { st!(s); *a = s.cc.0; *b = s.cc.1; OK }
    fn cuDevicePrimaryCtxRetain(c: *mut H, d: i32) { st!(s); if d != 0 { return INVALID_DEVICE } s.ctx_refs += 1; *c = CTX; OK }
    fn cuDevicePrimaryCtxRelease_v2(_d: i32) {
        st!(s);
        if s.ctx_refs == 0 { return INVALID_CONTEXT }
        let r = s.drain_all();
        let _ = r;
        s.ctx_refs -= 1;
        if s.ctx_refs == 0 {
            // the context dies: everything in it goes, and so does its sticky error
            s.sticky = None;
            let live: Vec<u64> = s.mem.allocs.iter().filter(|a| !a.1.freed).map(|a| *a.0).collect();
            if !live.is_empty() && env("LEAKS").is_some() { s.warn(format!("warning: {} device allocation(s) still live at context release", live.len())); }
            for p in live { s.mem.free(p); }
            s.modules.clear(); s.funcs.clear();
        }
        OK
    }
    fn cuDevicePrimaryCtxReset_v2(_d: i32) { st!(s); s.sticky = None; OK }
    fn cuDevicePrimaryCtxGetState(_d: i32, f: *mut u32, a: *mut i32) { st!(s); *f = 0; *a = (s.ctx_refs > 0) as i32; OK }
    fn cuDevicePrimaryCtxSetFlags_v2(_d: i32, _f: u32) { OK }
    fn cuCtxCreate_v2(c: *mut H, _f: u32, _d: i32) { st!(s); s.ctx_refs += 1; *c = CTX; CURRENT.set(CTX); OK }
    fn cuCtxCreate_v3(c: *mut H, _p: *mut c_void, _n: i32, _f: u32, _d: i32) { st!(s); s.ctx_refs += 1; *c = CTX; CURRENT.set(CTX); OK }
    fn cuCtxDestroy_v2(_c: H) { st!(s); s.ctx_refs = s.ctx_refs.saturating_sub(1); OK }
    fn cuCtxSetCurrent(c: H) { st!(s); let _ = s; if c != 0 && c != CTX { return INVALID_CONTEXT } CURRENT.set(c); OK }
    fn cuCtxGetCurrent(c: *mut H) { *c = CURRENT.get(); OK }
    fn cuCtxPushCurrent_v2(c: H) { CURRENT.set(c); OK }
    fn cuCtxPopCurrent_v2(c: *mut H) { if !c.is_null() { *c = CURRENT.get() } OK }
    fn cuCtxGetDevice(d: *mut i32) { *d = 0; OK }
    fn cuCtxSynchronize() { ctx!(s); if let Some(e) = s.in_capture() { return e } s.drain_all() }
    fn cuCtxSetFlags(_f: u32) { OK }
    fn cuCtxGetFlags(f: *mut u32) { *f = 0; OK }
    fn cuCtxGetLimit(v: *mut usize, _l: u32) { *v = 8 << 20; OK }
    fn cuCtxSetLimit(_l: u32, _v: usize) { OK }
    fn cuCtxGetCacheConfig(v: *mut u32) { *v = 0; OK }
    fn cuCtxSetCacheConfig(_v: u32) { OK }
    fn cuCtxGetStreamPriorityRange(l: *mut i32, g: *mut i32) { if !l.is_null() { *l = 0 } if !g.is_null() { *g = -5 } OK }
    fn cuGetErrorName(e: Res, p: *mut *const c_char) {
        // static strings with a terminator, made once
        static NAMES: Mutex<Option<HashMap<u32, CString>>> = Mutex::new(None);
        let mut g = NAMES.lock().unwrap();
        *p = g.get_or_insert_with(HashMap::new).entry(e).or_insert_with(|| CString::new(error_name(e)).unwrap()).as_ptr();
        OK
    }
    fn cuGetErrorString(e: Res, p: *mut *const c_char) {
        let g = lock();
        let c = match g.as_ref().and_then(|s| s.messages.get(&e)) { Some(c) => c.clone(), None => CString::new(error_text(e)).unwrap() };
        *p = c.into_raw(); // callers keep it for as long as they like
        OK
    }
    fn cuMemGetInfo_v2(f: *mut usize, t: *mut usize) { ctx!(s); *f = (s.mem.total - s.mem.used) as usize; *t = s.mem.total as usize; OK }
    fn cuMemAlloc_v2(p: *mut Ptr, n: usize) {
        ctx!(s);
        if let Some(e) = s.in_capture() { return e }
        if let Some(e) = s.sticky { return e }
        if n == 0 { return s.note(INVALID_VALUE, "allocation of 0 bytes".into()) }
        match s.mem.alloc(n as u64, "cuMemAlloc") { Some(a) => { *p = a; OK } None => s.note(OOM, format!("{n} bytes asked, {} of {} in use", s.mem.used, s.mem.total)) }
    }
    fn cuMemAllocAsync(p: *mut Ptr, n: usize, st: H) {
        ctx!(s);
        if !s.streams.contains_key(&streamh(st)) { return INVALID_HANDLE }
        if let Some(e) = s.sticky { return e }
        if n == 0 { return s.note(INVALID_VALUE, "allocation of 0 bytes".into()) }
        match s.mem.alloc(n as u64, "cuMemAllocAsync") { Some(a) => { *p = a; OK } None => s.note(OOM, format!("{n} bytes asked, {} of {} in use", s.mem.used, s.mem.total)) }
    }
    fn cuMemAllocManaged(p: *mut Ptr, n: usize, _f: u32) { ctx!(s); match s.mem.alloc(n as u64, "cuMemAllocManaged") { Some(a) => { *p = a; s.mem.set_shadow(a, n as u64, S_INIT); OK } None => OOM } }
    fn cuMemFree_v2(p: Ptr) { ctx!(s); if p == 0 { return OK } if let Some(e) = s.in_capture() { return e } let r = s.drain_all(); if r != OK { s.mem.free(p); return r } s.exec(&Op::Free(p)) }
    fn cuMemFreeAsync(p: Ptr, st: H) {
        ctx!(s);
        if s.streams.get(&st).map(|x| x.capture.is_some()).unwrap_or(false) { return OK }
        if s.sticky.is_some() { s.mem.free(p); return s.sticky.unwrap() }
        s.submit(st, Op::Free(p))
    }
    fn cuMemHostAlloc(p: *mut *mut c_void, n: usize, _f: u32) {
        ctx!(s);
        if posix_memalign(p, 4096, n.max(1)) != 0 { return OOM }
        std::ptr::write_bytes(*p as *mut u8, 0xff, n);
        s.pinned.insert(*p as usize, n);
        OK
    }
    fn cuMemAllocHost_v2(p: *mut *mut c_void, n: usize) { cuMemHostAlloc(p, n, 0) }
    fn cuMemFreeHost(p: *mut c_void) { ctx!(s); let r = s.drain_all(); let _ = r; if s.pinned.remove(&(p as usize)).is_none() { return INVALID_VALUE } free(p); OK }
    fn cuMemHostGetDevicePointer_v2(_d: *mut Ptr, _h: *mut c_void, _f: u32) { NOT_SUPPORTED }
    fn cuMemHostRegister_v2(p: *mut c_void, n: usize, _f: u32) { ctx!(s); s.pinned.insert(p as usize, n); OK }
    fn cuMemHostUnregister(p: *mut c_void) { ctx!(s); s.pinned.remove(&(p as usize)); OK }
    fn cuMemcpyHtoD_v2(d: Ptr, h: *const c_void, n: usize) { ctx!(s); if let Some(e) = s.in_capture() { return e } let r = s.drain(0); if r != OK { return r } s.exec(&Op::H2D { dst: d, src: h as usize, n, snap: None }) }
    fn cuMemcpyDtoH_v2(h: *mut c_void, d: Ptr, n: usize) { ctx!(s); if let Some(e) = s.in_capture() { return e } let r = s.drain(0); if r != OK { return r } s.exec(&Op::D2H { dst: h as usize, src: d, n }) }
    fn cuMemcpyDtoD_v2(d: Ptr, e: Ptr, n: usize) { ctx!(s); if let Some(e) = s.in_capture() { return e } let r = s.drain(0); if r != OK { return r } s.exec(&Op::D2D { dst: d, src: e, n }) }
    fn cuMemcpyHtoDAsync_v2(d: Ptr, h: *const c_void, n: usize, st: H) {
        ctx!(s);
        let capturing = s.streams.get(&st).map(|x| x.capture.is_some()).unwrap_or(false);
        // pageable memory is read before the call returns; pinned memory when the copy runs
        let snap = if !s.lazy || capturing || s.pinned_range(h as usize, n) { None } else { Some(Arc::new(std::slice::from_raw_parts(h as *const u8, n).to_vec())) };
        s.submit(st, Op::H2D { dst: d, src: h as usize, n, snap })
    }
    fn cuMemcpyDtoHAsync_v2(h: *mut c_void, d: Ptr, n: usize, st: H) {
        ctx!(s);
        let r = s.submit(st, Op::D2H { dst: h as usize, src: d, n });
        let capturing = s.streams.get(&st).map(|x| x.capture.is_some()).unwrap_or(false);
        if r == OK && s.lazy && !capturing && !s.pinned_range(h as usize, n) { return s.drain(st) }
        r
    }
    fn cuMemcpyDtoDAsync_v2(d: Ptr, e: Ptr, n: usize, st: H) { ctx!(s); s.submit(st, Op::D2D { dst: d, src: e, n }) }
    fn cuMemsetD8_v2(d: Ptr, v: u8, n: usize) { ctx!(s); if let Some(e) = s.in_capture() { return e } let r = s.drain(0); if r != OK { return r } s.exec(&Op::Set { dst: d, v: v as u32, w: 1, n }) }
    fn cuMemsetD32_v2(d: Ptr, v: u32, n: usize) { ctx!(s); if let Some(e) = s.in_capture() { return e } let r = s.drain(0); if r != OK { return r } s.exec(&Op::Set { dst: d, v, w: 4, n }) }
    fn cuMemsetD8Async(d: Ptr, v: u8, n: usize, st: H) { ctx!(s); s.submit(st, Op::Set { dst: d, v: v as u32, w: 1, n }) }
    fn cuMemsetD16Async(d: Ptr, v: u16, n: usize, st: H) { ctx!(s); s.submit(st, Op::Set { dst: d, v: v as u32, w: 2, n }) }
    fn cuMemsetD32Async(d: Ptr, v: u32, n: usize, st: H) { ctx!(s); s.submit(st, Op::Set { dst: d, v, w: 4, n }) }
    fn cuDeviceGetDefaultMemPool(p: *mut H, _d: i32) { *p = 0xb001; OK }
    fn cuDeviceGetMemPool(p: *mut H, _d: i32) { *p = 0xb001; OK }
    fn cuMemPoolTrimTo(_p: H, _n: usize) { OK }
    fn cuMemPoolSetAttribute(_p: H, _a: u32, _v: *mut c_void) { OK }
    fn cuMemPoolGetAttribute(_p: H, _a: u32, v: *mut u64) { *v = 0; OK }

    fn cuStreamCreate(p: *mut H, f: u32) { ctx!(s); let h = s.id(); s.streams.insert(h, Stream { flags: f, ..Default::default() }); *p = h; OK }
    fn cuStreamCreateWithPriority(p: *mut H, f: u32, pr: i32) { ctx!(s); let h = s.id(); s.streams.insert(h, Stream { flags: f, prio: pr, ..Default::default() }); *p = h; OK }
    fn cuStreamGetPriority(h: H, p: *mut i32) { ctx!(s); match s.streams.get(&h) { Some(x) => { *p = x.prio; OK } None => INVALID_HANDLE } }
    fn cuStreamGetFlags(h: H, p: *mut u32) { ctx!(s); match s.streams.get(&h) { Some(x) => { *p = x.flags; OK } None => INVALID_HANDLE } }
    fn cuStreamDestroy_v2(h: H) { ctx!(s); if h < 3 || !s.streams.contains_key(&h) { return INVALID_HANDLE } let r = s.drain(h); s.streams.remove(&h); r }
    fn cuStreamSynchronize(h: H) {
        ctx!(s);
        match s.streams.get(&h) { None => return INVALID_HANDLE, Some(x) if x.capture.is_some() => return s.in_capture().unwrap_or(CAPTURE_UNSUPPORTED), _ => {} }
        s.drain(h)
    }
    fn cuStreamQuery(h: H) { ctx!(s); match s.streams.get(&h) { None => INVALID_HANDLE, Some(x) if !x.queue.is_empty() => NOT_READY, _ => s.sticky.unwrap_or(OK) } }
    fn cuStreamWaitEvent(h: H, e: H, _f: u32) {
        ctx!(s);
        let Some(ev) = s.events.get(&e) else { return INVALID_HANDLE };
        let (stamp, cap) = (ev.stamp, ev.capture);
        if let Some((g, from)) = cap {
            // waiting for captured work joins the capture; the origin waiting for a fork closes the fork
            let o = s.streams.get(&from).map(|x| x.origin).unwrap_or(false);
            let Some(me) = s.streams.get_mut(&h) else { return INVALID_HANDLE };
            if me.capture.is_none() { me.capture = Some(g); me.joined = false; me.origin = false; }
            if !o { if let Some(f) = s.streams.get_mut(&from) { f.joined = true } }
            return OK;
        }
        s.submit(h, Op::Wait(e, stamp))
    }
    fn cuLaunchHostFunc(h: H, f: usize, a: usize) { ctx!(s); s.submit(h, Op::Host(f, a)) }
    fn cuStreamBeginCapture_v2(h: H, _m: u32) {
        ctx!(s);
        if h == 0 { return s.note(CAPTURE_UNSUPPORTED, "the null stream cannot be captured".into()) }
        let r = s.drain(h);
        if r != OK { return r }
        let g = s.id();
        let Some(x) = s.streams.get_mut(&h) else { return INVALID_HANDLE };
        if x.capture.is_some() { return 401 }
        x.capture = Some(g); x.origin = true;
        s.graphs.insert(g, Graph::default());
        s.capture_any += 1;
        OK
    }
    fn cuStreamIsCapturing(h: H, v: *mut u32) { ctx!(s); match s.streams.get(&h) { Some(x) => { *v = match x.capture { Some(g) => if s.graphs[&g].bad { 2 } else { 1 }, None => 0 }; OK } None => INVALID_HANDLE } }
    fn cuStreamEndCapture(h: H, p: *mut H) {
        ctx!(s);
        *p = 0;
        let Some(x) = s.streams.get_mut(&h) else { return INVALID_HANDLE };
        let Some(g) = x.capture else { return 401 };
        if !x.origin { return CAPTURE_UNMATCHED }
        x.capture = None; x.origin = false;
        s.capture_any -= 1;
        let mut unjoined = false;
        for f in s.streams.values_mut() { if f.capture == Some(g) { f.capture = None; unjoined |= !f.joined; } }
        for e in s.events.values_mut() { if e.capture.map(|c| c.0 == g).unwrap_or(false) { e.capture = None } }
        if s.graphs[&g].bad { return CAPTURE_INVALIDATED }
        if unjoined { return s.note(CAPTURE_UNJOINED, "a stream forked into the capture was not joined".into()) }
        *p = g;
        OK
    }
    fn cuGraphInstantiateWithFlags(p: *mut H, g: H, _f: u64) { ctx!(s); let Some(x) = s.graphs.get(&g) else { return INVALID_HANDLE }; let o = x.ops.clone(); let h = s.id(); s.execs.insert(h, o); *p = h; OK }
    fn cuGraphUpload(_e: H, _s: H) { OK }
    fn cuGraphLaunch(e: H, h: H) {
        ctx!(s);
        let Some(o) = s.execs.get(&e) else { return INVALID_HANDLE };
        for op in o.clone() { let r = s.submit(h, op); if r != OK { return r } }
        OK
    }
    fn cuGraphGetNodes(g: H, nodes: *mut H, n: *mut usize) {
        ctx!(s);
        let Some(x) = s.graphs.get(&g) else { return INVALID_HANDLE };
        if !nodes.is_null() { for k in 0..(*n).min(x.ops.len()) { *nodes.add(k) = g << 16 | (k + 1) } }
        *n = x.ops.len();
        OK
    }
    fn cuGraphExecDestroy(e: H) { ctx!(s); if s.execs.remove(&e).is_some() { OK } else { INVALID_HANDLE } }
    fn cuGraphDestroy(g: H) { ctx!(s); if s.graphs.remove(&g).is_some() { OK } else { INVALID_HANDLE } }

    fn cuEventCreate(p: *mut H, _f: u32) { ctx!(s); let h = s.id(); s.events.insert(h, Event::default()); *p = h; OK }
    fn cuEventDestroy_v2(e: H) {
        ctx!(s);
        let lazy = s.lazy;
        match s.events.get_mut(&e) {
            Some(v) if !v.dead => { v.dead = true; if !lazy || v.done == v.stamp { s.events.remove(&e); } OK }
            _ => INVALID_HANDLE,
        }
    }
    fn cuEventRecord(e: H, h: H) {
        ctx!(s);
        let cap = match s.streams.get(&h) { Some(x) => x.capture, None => return INVALID_HANDLE };
        let Some(ev) = s.events.get_mut(&e) else { return INVALID_HANDLE };
        if let Some(g) = cap { ev.capture = Some((g, h)); return OK }
        ev.capture = None;
        ev.stamp += 1; ev.stream = h;
        let st = ev.stamp;
        s.submit(h, Op::Record(e, st))
    }
    fn cuEventQuery(e: H) { ctx!(s); match s.events.get(&e) { None => INVALID_HANDLE, Some(v) if v.done < v.stamp => NOT_READY, _ => s.sticky.unwrap_or(OK) } }
    fn cuEventSynchronize(e: H) { ctx!(s); let Some(v) = s.events.get(&e) else { return INVALID_HANDLE }; let (h, pend) = (v.stream, v.done < v.stamp); if pend { s.drain(h) } else { s.sticky.unwrap_or(OK) } }
    fn cuEventElapsedTime(ms: *mut f32, a: H, b: H) {
        ctx!(s);
        match (s.events.get(&a).and_then(|e| e.time), s.events.get(&b).and_then(|e| e.time)) {
            (Some(x), Some(y)) => { *ms = y.saturating_duration_since(x).as_secs_f32() * 1e3; OK }
            _ => INVALID_HANDLE,
        }
    }
    fn cuEventElapsedTime_v2(ms: *mut f32, a: H, b: H) { cuEventElapsedTime(ms, a, b) }

    fn cuModuleLoadData(m: *mut H, img: *const c_void) { ctx!(s); load(s, m, img as *const u8) }
    fn cuModuleLoadDataEx(m: *mut H, img: *const c_void, _n: u32, _o: *mut c_void, _v: *mut c_void) { ctx!(s); load(s, m, img as *const u8) }
    fn cuModuleLoad(m: *mut H, f: *const c_char) {
        ctx!(s);
        let Ok(mut d) = std::fs::read(CStr::from_ptr(f).to_string_lossy().as_ref()) else { return 301 };
        d.push(0);
        load(s, m, d.as_ptr())
    }
    fn cuModuleUnload(m: H) {
        ctx!(s);
        let r = s.drain_all(); let _ = r;
        let Some(x) = s.modules.remove(&m) else { return INVALID_HANDLE };
        for f in x.funcs { s.funcs.remove(&f); }
        for (p, _) in x.globals.into_values() { s.mem.free(p); }
        OK
    }
    fn cuModuleGetFunction(f: *mut H, m: H, n: *const c_char) {
        ctx!(s);
        let n = CStr::from_ptr(n).to_string_lossy().into_owned();
        let Some(x) = s.modules.get(&m) else { return INVALID_HANDLE };
        match x.funcs.iter().find(|h| s.funcs[h].k.name == n) { Some(h) => { *f = *h; OK } None => s.note(NOT_FOUND, format!("kernel '{n}' is not in the module")) }
    }
    fn cuModuleGetGlobal_v2(p: *mut Ptr, z: *mut usize, m: H, n: *const c_char) {
        ctx!(s);
        let n = CStr::from_ptr(n).to_string_lossy().into_owned();
        let Some(x) = s.modules.get(&m) else { return INVALID_HANDLE };
        match x.globals.get(&n) { Some((a, b)) => { if !p.is_null() { *p = *a } if !z.is_null() { *z = *b as usize } OK } None => NOT_FOUND }
    }
    fn cuFuncGetAttribute(v: *mut i32, a: u32, f: H) {
        ctx!(s);
        let Some(x) = s.funcs.get(&f) else { return INVALID_HANDLE };
        *v = match a { 0 => x.k.maxntid.map(|m| (m[0] * m[1] * m[2]) as i32).unwrap_or(1024), 1 => x.k.static_shared_bytes as i32, 2 => 0, 3 => x.k.local_bytes as i32, 4 => (x.k.register_slots as i32).min(255), 5 | 6 => x.image_cc, 8 => x.max_dyn as i32, _ => 0 };
        OK
    }
    fn cuFuncSetAttribute(f: H, a: u32, v: i32) {
        ctx!(s);
        let mut optin = 0; cuattr(s, &mut optin, 97);
        let Some(x) = s.funcs.get_mut(&f) else { return INVALID_HANDLE };
        if a == 8 {
            if v < 0 || v as u32 + x.k.static_shared_bytes > optin as u32 { let st = x.k.static_shared_bytes; return s.note(INVALID_VALUE, format!("dynamic shared memory of {v} bytes (+ {st} static) is above this device's limit of {optin}")) }
            x.max_dyn = v as u32;
        }
        OK
    }
    fn cuFuncSetCacheConfig(_f: H, _c: u32) { OK }
    fn cuFuncGetParamInfo(f: H, i: usize, off: *mut usize, z: *mut usize) {
        ctx!(s);
        let Some(x) = s.funcs.get(&f) else { return INVALID_HANDLE };
        match x.k.parameters.get(i) { Some(p) => { if !off.is_null() { *off = p.offset as usize } if !z.is_null() { *z = p.bytes as usize } OK } None => INVALID_VALUE }
    }
    fn cuFuncGetName(p: *mut *const c_char, f: H) { ctx!(s); let Some(x) = s.funcs.get(&f) else { return INVALID_HANDLE }; *p = CString::new(x.k.name.clone()).unwrap().into_raw(); OK }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(n: *mut i32, f: H, b: i32, dynamic: usize) { cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, b, dynamic, 0) }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n: *mut i32, f: H, b: i32, dynamic: usize, _fl: u32) {
        ctx!(s);
        let (mut t, mut sm) = (0, 0); cuattr(s, &mut t, 39); cuattr(s, &mut sm, 81);
        let Some(x) = s.funcs.get(&f) else { return INVALID_HANDLE };
        if b <= 0 || b > 1024 { *n = 0; return INVALID_VALUE }
        // threads and shared memory; registers are the real compiler's business
        let by_t = t / ((b + 31) / 32 * 32);
        let per = dynamic as i32 + x.k.static_shared_bytes as i32 + 1024;
        *n = by_t.min(sm / per).min(32);
        OK
    }
    fn cuOccupancyMaxPotentialBlockSize(g: *mut i32, b: *mut i32, f: H, _cb: usize, dynamic: usize, lim: i32) {
        let mut m = 0;
        let r = cuFuncGetAttribute(&mut m, 0, f);
        if r != OK { return r }
        if lim > 0 { m = m.min(lim) }
        let mut k = 0;
        cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut k, f, m, dynamic);
        ctx!(s);
        *b = m; *g = k.max(1) * s.sms;
        OK
    }
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(g: *mut i32, b: *mut i32, f: H, cb: usize, dynamic: usize, lim: i32, _fl: u32) { cuOccupancyMaxPotentialBlockSize(g, b, f, cb, dynamic, lim) }
    fn cuOccupancyAvailableDynamicSMemPerBlock(p: *mut usize, f: H, n: i32, _b: i32) {
        ctx!(s);
        let (mut sm, mut opt) = (0, 0); cuattr(s, &mut sm, 81); cuattr(s, &mut opt, 97);
        let Some(x) = s.funcs.get(&f) else { return INVALID_HANDLE };
        *p = ((sm / n.max(1) - 1024).min(opt) - x.k.static_shared_bytes as i32).max(0) as usize;
        OK
    }
    fn cuLaunchKernel(f: H, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, sm: u32, h: H, p: *const *const c_void, x: *const *const c_void) {
        ctx!(s);
        s.launch(f, [gx, gy, gz], [bx, by, bz], sm, h, p, x, false)
    }
    fn cuLaunchCooperativeKernel(f: H, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, sm: u32, h: H, p: *const *const c_void) {
        let mut n = 0;
        let r = cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut n, f, (bx * by * bz) as i32, sm as usize);
        if r != OK { return r }
        ctx!(s);
        if gx as u64 * gy as u64 * gz as u64 > n as u64 * s.sms as u64 { return s.note(720, format!("cooperative launch of {} blocks, {} fit", gx * gy * gz, n * s.sms)) }
        s.launch(f, [gx, gy, gz], [bx, by, bz], sm, h, p, std::ptr::null(), true)
    }
    fn cuLaunchKernelEx(c: *const LaunchConfig, f: H, p: *const *const c_void, x: *const *const c_void) {
        ctx!(s);
        let c = &*c;
        let mut coop = false;
        for k in 0..c.num as usize {
            let a = &*c.attrs.add(k);
            coop |= a.id == 2 && a.value[0] != 0;
            // 4: cluster dimension
            if a.id == 4 { let d = &a.value[..3]; if d.iter().any(|x| *x > 1) { return s.note(NOT_SUPPORTED, format!("clusters of {d:?} blocks are not emulated")) } }
        }
        s.launch(f, c.grid, c.block, c.smem, c.stream, p, x, coop)
    }
    fn cuProfilerStart() { OK }
    fn cuProfilerStop() { OK }
    fn cuPointerGetAttribute(d: *mut c_void, a: u32, p: Ptr) {
        ctx!(s);
        if !s.mem.valid(p, 1) { return INVALID_VALUE }
        if a == 2 { *(d as *mut u32) = 2 } else { return NOT_SUPPORTED }
        OK
    }
}
#[repr(C)]
pub struct LaunchAttr {
    id: u32,
    pad: [u8; 4],
    value: [u32; 16],
}
#[repr(C)]
pub struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    smem: u32,
    stream: H,
    attrs: *const LaunchAttr,
    num: u32,
}
fn cuattr(s: &State, v: &mut i32, a: u32) {
    let optin = match s.cc { (8, 6 | 9) => 99 << 10, (8, _) => 163 << 10, (c, _) if c >= 9 => 227 << 10, _ => 96 << 10 };
    *v = match a { 39 => if s.cc.0 == 8 && s.cc.1 > 0 { 1536 } else { 2048 }, 81 => optin + 1024, _ => optin };
}

/// Kernel names and parameter sizes of a cubin, for the message that refuses it.
unsafe fn cubin(p: *const u8) -> String {
    let u16at = |o: usize| (p.add(o) as *const u16).read_unaligned() as usize;
    let u32at = |o: usize| (p.add(o) as *const u32).read_unaligned() as usize;
    let u64at = |o: usize| (p.add(o) as *const u64).read_unaligned() as usize;
    let (sh, esz, n, strx) = (u64at(40), u16at(58), u16at(60), u16at(62));
    let stroff = u64at(sh + strx * esz + 24);
    let mut out = vec![];
    for k in 0..n {
        let h = sh + k * esz;
        let name = CStr::from_ptr(p.add(stroff + u32at(h)) as *const c_char).to_string_lossy();
        if let Some(kn) = name.strip_prefix(".nv.info.") {
            let (off, size) = (u64at(h + 24), u64at(h + 32));
            let (mut o, mut sizes) = (off, BTreeMap::new());
            while o + 4 <= off + size {
                let (fmt, attr, len) = (*p.add(o), *p.add(o + 1), u16at(o + 2));
                if fmt == 4 {
                    if attr == 0x17 && len >= 12 {
                        sizes.insert(u16at(o + 8), u32at(o + 12) >> 18);
                    }
                    o += 4 + len;
                } else {
                    o += 4;
                }
            }
            out.push(format!("{kn}({})", sizes.values().map(|s| s.to_string()).collect::<Vec<_>>().join(",")));
        }
    }
    out.join(" ")
}

unsafe fn load(s: &mut State, m: *mut H, img: *const u8) -> Res {
    if let Some(e) = s.sticky {
        return e;
    }
    if *(img as *const u32) == 0x464c_457f {
        let k = cubin(img);
        return s.note(NO_BINARY, format!("this is a cubin; the emulated driver executes PTX only (compile with --gpu-architecture=compute_XX and use nvrtcGetPTX). Kernels with their parameter sizes: {k}"));
    }
    if matches!(*(img as *const u32), 0xba55_ed50 | 0x466243b1) {
        return s.note(NO_BINARY, "this is a fat binary; the emulated driver executes PTX only".into());
    }
    let text = CStr::from_ptr(img as *const c_char).to_string_lossy();
    let ast = match exlora_ptx_emulator::parser::parse(&text) {
        Ok(a) => a,
        Err(e) => return s.note(INVALID_PTX, e),
    };
    let digits: String = ast.target.chars().filter(|c| c.is_ascii_digit()).collect();
    let t: i32 = digits.parse().unwrap_or(0);
    let have = s.cc.0 * 10 + s.cc.1;
    let exact = ast.target.ends_with('a');
    if t > have || exact && t != have {
        return s.note(NO_BINARY, format!("the PTX is for {}, the device is {}.{}", ast.target, s.cc.0, s.cc.1));
    }
    let mut g: HashMap<String, (u64, u64)> = HashMap::new();
    for v in &ast.variables {
        if v.space == StateSpace::Shared || v.is_external {
            continue;
        }
        let n = v.bytes.max(1);
        let Some(a) = s.mem.alloc(n, &format!("module variable {}", v.name)) else { return OOM };
        std::ptr::write_bytes(a as *mut u8, 0, n as usize);
        s.mem.set_shadow(a, n, S_INIT);
        g.insert(v.name.clone(), (a, v.bytes));
    }
    for v in &ast.variables {
        let Some(&(a, _)) = g.get(&v.name) else { continue };
        for exlora_ptx_emulator::parser::syntax::Initializer { offset: o, bytes: z, value: i } in &v.initializers {
            let x = match i {
                InitialValue::Bits(b) => *b,
                InitialValue::Address { symbol: n, offset: add } => g.get(n).map(|x| (x.0 as i64 + add) as u64).unwrap_or(0),
            };
            std::ptr::copy_nonoverlapping(x.to_le_bytes().as_ptr(), (a + o) as *mut u8, *z as usize);
        }
    }
    let addresses = g.iter().map(|(name, variable)| (name.clone(), variable.0)).collect();
    let mut funcs = vec![];
    for f in &ast.functions {
        if !f.is_entry || f.body.is_none() {
            continue;
        }
        match exlora_ptx_emulator::lowering::lower(&ast, f, &addresses) {
            Ok(k) => {
                for w in &k.warnings {
                    s.warn(format!("warning: {w}"));
                }
                let h = s.id();
                let max_dyn = (48u32 << 10).saturating_sub(k.static_shared_bytes);
                s.funcs.insert(h, Function { k: Arc::new(k), max_dyn, image_cc: t });
                funcs.push(h);
            }
            Err(e) => return s.note(INVALID_PTX, format!("kernel {}: {e}", f.name)),
        }
    }
    let h = s.id();
    s.modules.insert(h, Module { globals: g, funcs });
    *m = h;
    OK
}

// ---------------------------------------------------------------- extras, found with dlsym
/// The last error in full. The string lives until the next error.
#[no_mangle]
pub unsafe extern "C" fn emulated_cuda_last_error() -> *const c_char {
    match lock().as_ref() {
        Some(s) => s.last.clone().into_raw(),
        None => std::ptr::null(),
    }
}
/// Change a setting: "order", "async", "race", "init", "exit_barrier", "sites", "stats", "mma", "max_instr", "streams".
#[no_mangle]
pub unsafe extern "C" fn emulated_cuda_set(k: *const c_char, v: *const c_char) -> Res {
    st!(s);
    let (k, v) = (CStr::from_ptr(k).to_string_lossy(), CStr::from_ptr(v).to_string_lossy());
    if k == "streams" {
        let r = s.drain_all();
        s.lazy = v == "lazy";
        return r;
    }
    if k == "quiet" {
        s.verbose = v == "0";
        return OK;
    }
    if set(&mut s.cfg, &k, &v) {
        OK
    } else {
        INVALID_VALUE
    }
}
/// Forget a sticky error (a real driver needs a new process). Memory contents stay.
#[no_mangle]
pub unsafe extern "C" fn emulated_cuda_clear() -> Res {
    st!(s);
    for x in s.streams.values_mut() {
        x.queue.clear();
    }
    s.sticky = None;
    s.last = CString::default();
    s.messages.clear();
    s.stats = Stats::default();
    s.per_kernel.clear();
    s.warnings.clear();
    OK
}
/// Counters as 16 numbers: launches, warp instr, lane instr, load bytes, store bytes, sectors, cp.async bytes,
/// extra bank cycles, shared accesses, mma, barriers, nanoseconds, warnings, bytes in use, peak bytes, 0.
#[no_mangle]
pub unsafe extern "C" fn emulated_cuda_stats(o: *mut u64) -> Res {
    st!(s);
    let t = &s.stats;
    let v = [t.launches, t.warp_instr, t.lane_instr, t.ld_bytes, t.st_bytes, t.sectors, t.async_bytes, t.bank_extra, t.shared_acc, t.mma, t.barriers, (t.secs * 1e9) as u64, s.warnings.len() as u64, s.mem.used, s.mem.peak, 0];
    std::ptr::copy_nonoverlapping(v.as_ptr(), o, 16);
    OK
}
/// A table of counters per kernel on standard error.
#[no_mangle]
pub unsafe extern "C" fn emulated_cuda_report() -> Res {
    st!(s);
    for (n, t) in &s.per_kernel {
        eprintln!("{n}: {} launches, {:.2} M lane instructions, {:.1} ms, {:.0} M lane instr/s, {} mma, {} barriers", t.launches, t.lane_instr as f64 / 1e6, t.secs * 1e3, t.lane_instr as f64 / t.secs / 1e6, t.mma, t.barriers);
        if s.cfg.stats {
            eprintln!("  global: {} B loaded, {} B stored, {} sectors of 32 B; cp.async {} B; shared: {} accesses, {} extra bank cycles", t.ld_bytes, t.st_bytes, t.sectors, t.async_bytes, t.shared_acc, t.bank_extra);
        }
        let c: Vec<String> = (0..18).filter(|&k| t.class[k] > 0).map(|k| format!("{} {}", Class::NAMES[k], t.class[k])).collect();
        eprintln!("  lanes by class: {}", c.join(", "));
    }
    OK
}
