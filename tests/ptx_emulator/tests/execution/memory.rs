//! Bounds, alignment, memory that nobody has written.
use super::support::Device;

const LOAD: &str = "ld.global.u32 %r4, [%rd2];";

#[test]
fn a_read_past_the_end_names_allocation_kernel_block_thread_and_line() {
    let mut device = Device::new();
    let a = device.words(&[0; 40]);
    device.run(LOAD, 3, 40, [a, 0]);
    let parts = [
        "out-of-bounds global read of 4 bytes",
        "0 byte(s) past the end of allocation #1 (buffer, 160 bytes)",
        "kernel k, block (0,0,0), thread (40,0,0) [warp 1 lane 8]",
        "`ld.global.u32` at PTX line",
        "test.cu:1",
    ];
    device.fail(LOAD, 3, 41, [a, 0], &parts);
}

#[test]
fn an_access_before_the_start_is_found() {
    let mut device = Device::new();
    let a = device.words(&[0; 4]);
    device.run("st.global.u32 [%rd0], %r0;", 1, 1, [a, 0]);
    device.fail("st.global.u32 [%rd0+-4], %r0;", 1, 1, [a, 0], &["out-of-bounds global write", "4 byte(s) before"]);
}

#[test]
fn the_last_bytes_of_a_vector_are_checked() {
    let mut device = Device::new();
    let a = device.words(&[0; 7]);
    device.run("ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd0];", 1, 1, [a, 0]);
    let parts = ["out-of-bounds global read of 16 bytes", "0 byte(s) past the end"];
    device.fail("ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd0+16];", 1, 1, [a, 0], &parts);
}

#[test]
fn a_null_pointer_is_named() {
    Device::new().fail(LOAD, 1, 1, [0, 0], &["out-of-bounds global read", "a null pointer"]);
}

#[test]
fn freed_memory_is_named() {
    let mut device = Device::new();
    let a = device.words(&[0; 4]);
    device.run(LOAD, 1, 4, [a, 0]);
    device.memory.free(a);
    device.fail(LOAD, 1, 4, [a, 0], &["out-of-bounds global read", "which has been freed"]);
}

#[test]
fn an_address_must_be_a_multiple_of_the_access() {
    let mut device = Device::new();
    let a = device.words(&[0; 8]);
    device.run("ld.global.v2.u32 {%r4, %r5}, [%rd0+8];", 1, 1, [a, 0]);
    let parts = ["misaligned global read of 8 bytes", "byte 4 of allocation"];
    device.fail("ld.global.v2.u32 {%r4, %r5}, [%rd0+4];", 1, 1, [a, 0], &parts);
    device.fail(
        "st.shared.u32 [%r2+2], %r0;",
        1,
        1,
        [a, 0],
        &["misaligned shared write of 4 bytes", "byte 2 of s[1024]"],
    );
}

#[test]
fn global_memory_must_be_written_before_it_is_read() {
    let mut device = Device::new();
    let a = device.unwritten(128);
    device.fail(
        LOAD,
        1,
        32,
        [a, 0],
        &["uninitialized global read", "nobody has written byte 0 of allocation", "test.cu:1"],
    );
    device.run(&format!("st.global.u32 [%rd2], %r0;\n{LOAD}"), 1, 32, [a, 0]);
    device.run(LOAD, 1, 32, [a, 0]);
    let half = device.unwritten(4);
    let body = "st.global.u16 [%rd0], %h0;\nld.global.u32 %r4, [%rd0];";
    device.fail(body, 1, 1, [half, 0], &["nobody has written byte 2 of", "test.cu:2"]);
    device.settings.check_unwritten = false;
    let unchecked = device.unwritten(4);
    device.run(LOAD, 1, 1, [unchecked, 0]);
}

#[test]
fn shared_memory_must_be_written_before_it_is_read() {
    let body = "ld.shared.u32 %r4, [%r3];";
    Device::new().fail(body, 1, 1, [0; 2], &["uninitialized shared read", "nobody has written byte 0 of s[1024]"]);
    Device::new().run(&format!("st.shared.u32 [%r3], %r0;\n{body}"), 2, 1, [0; 2]);
}

#[test]
fn one_block_does_not_see_what_another_left_in_shared_memory() {
    let body = "setp.ne.u32 %p0, %r1, 0;\n@!%p0 st.shared.u32 [%r3], %r0;\nld.shared.u32 %r4, [%r3];";
    Device::new().run(body, 1, 1, [0; 2]);
    Device::new().fail(body, 2, 1, [0; 2], &["uninitialized shared read", "block (1,0,0)", "test.cu:3"]);
}

#[test]
fn shared_accesses_past_a_variable_are_found() {
    Device::new().run("st.shared.u32 [%r2+1020], %r0;", 1, 1, [0; 2]);
    let parts = ["out-of-bounds shared write of 4 bytes", "0 byte(s) past the end of s[1024]"];
    Device::new().fail("st.shared.u32 [%r2+1024], %r0;", 1, 1, [0; 2], &parts);
}

#[test]
fn dynamic_shared_memory_ends_where_the_launch_says() {
    let mut device = Device::new();
    device.dynamic_shared_bytes = 64;
    let body = "mov.u32 %r4, dynamic;\nst.shared.u32 [%r4+OFFSET], %r0;";
    let parts = ["out-of-bounds shared write", "0 byte(s) past the end of the dynamic shared memory [64]"];
    device.fail(&body.replace("OFFSET", "64"), 1, 1, [0; 2], &parts);
    device.run(&body.replace("OFFSET", "60"), 1, 1, [0; 2]);
}

#[test]
fn local_memory_ends_where_the_kernel_says() {
    let body = ".local .align 16 .b8 l[16];\nmov.u64 %rd4, l;\nst.local.u32 [%rd4+OFFSET], %r0;";
    Device::new().run(&body.replace("OFFSET", "12"), 1, 1, [0; 2]);
    Device::new().fail(&body.replace("OFFSET", "16"), 1, 1, [0; 2], &["out-of-bounds or misaligned local write"]);
}
