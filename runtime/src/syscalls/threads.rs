//! Threads and the end of the process.

use super::ENOSYS;

#[unsafe(no_mangle)]
extern "C" fn sys_spawn(
    _id: *mut u32,
    _entry: extern "C" fn(usize),
    _argument: usize,
    _priority: u8,
    _core: isize,
) -> i32 {
    refuse();
    -ENOSYS
}

#[unsafe(no_mangle)]
extern "C" fn sys_spawn2(
    _entry: extern "C" fn(usize),
    _argument: usize,
    _priority: u8,
    _stack: usize,
    _core: isize,
) -> u32 {
    refuse();
    // std takes 0 for "could not be spawned".
    0
}

fn refuse() {
    log::error!(
        "std::thread::spawn refused: a thread's stack belongs to this machine and cannot move; use \
         tokio::spawn"
    );
}

#[unsafe(no_mangle)]
extern "C" fn sys_exit(status: i32) -> ! {
    ferry_abi::host_exit(status)
}

#[unsafe(no_mangle)]
extern "C" fn sys_abort() -> ! {
    ferry_abi::host_exit(134)
}
