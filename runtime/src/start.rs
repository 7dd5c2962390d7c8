//! The first code on the portable stack.

use std::ffi::c_char;

use crate::{heap, logger, rehearsal};

unsafe extern "C" {
    /// std's own start: sets up arguments and environment, calls `main`, exits with its result.
    fn runtime_entry(argc: i32, argv: *const *const c_char, env: *const *const c_char) -> !;
}

unsafe extern "C" {
    /// The service's `main`, behind [`__wrap_main`].
    fn __real_main(argc: isize, argv: *const *const c_char) -> i32;
}

/// Started by the host-bound side, once in a service's life, on the portable stack with TLS in place.
#[unsafe(no_mangle)]
extern "C" fn portable_entry() -> ! {
    start()
}

/// Started by the host-bound side of a standby, in the same way. What it leaves in the portable region is
/// wiped before the service's memory comes.
#[unsafe(no_mangle)]
extern "C" fn portable_rehearsal() -> ! {
    rehearsal::announce();
    start()
}

fn start() -> ! {
    let machine = ferry_abi::host_machine();
    // SAFETY: the host-bound side says that this range of the portable region is unused; nothing has
    // been allocated yet. Of the two starts only one happens on a machine before its region is wiped.
    unsafe { heap::init(machine.heap_start, machine.portable_end) };
    logger::init(machine.log_level);
    // SAFETY: the machine's argument block lives as long as the machine; it is copied here, because
    // the service may outlive this machine.
    let block = unsafe { std::slice::from_raw_parts(machine.args, machine.args_len as usize) };
    let block: &'static [u8] = Vec::leak(block.to_vec());
    let name = c"service".as_ptr();
    let mut argv = vec![name];
    argv.extend(block.split_inclusive(|&byte| byte == 0).map(|arg| arg.as_ptr().cast::<c_char>()));
    let argc = argv.len() as i32;
    argv.push(std::ptr::null());
    let env: &'static [*const c_char] = Vec::leak(vec![std::ptr::null()]);
    // SAFETY: both arrays are NUL-terminated, as are the strings, and live for ever.
    unsafe { runtime_entry(argc, Vec::leak(argv).as_ptr(), env.as_ptr()) }
}

/// What std's start calls in place of the service's `main` (`--wrap=main` in .cargo/config.toml): in a
/// rehearsal no code of the service runs.
#[unsafe(no_mangle)]
extern "C" fn __wrap_main(argc: isize, argv: *const *const c_char) -> i32 {
    if rehearsal::announced() {
        rehearsal::run();
    }
    // SAFETY: called once, by std's start, with its arguments.
    unsafe { __real_main(argc, argv) }
}
