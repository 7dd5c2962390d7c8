//! Files and the kernel's sockets: refused, by name.

use std::ffi::{CStr, c_char, c_void};

use super::ENOSYS;

fn refuse(what: &str, name: *const c_char) -> i32 {
    let name = if name.is_null() {
        "".into()
    } else {
        // SAFETY: std passes NUL-terminated paths and host names.
        unsafe { CStr::from_ptr(name) }.to_string_lossy()
    };
    log::error!(
        "{what} '{name}' refused: files belong to a machine and cannot move; keep state in memory, or \
         in a service of its own"
    );
    -ENOSYS
}

#[unsafe(no_mangle)]
extern "C" fn sys_open(name: *const c_char, _flags: i32, _mode: u32) -> i32 {
    refuse("opening file", name)
}

#[unsafe(no_mangle)]
extern "C" fn sys_opendir(name: *const c_char) -> i32 {
    refuse("opening folder", name)
}

#[unsafe(no_mangle)]
extern "C" fn sys_mkdir(name: *const c_char, _mode: u32) -> i32 {
    refuse("making folder", name)
}

#[unsafe(no_mangle)]
extern "C" fn sys_rmdir(name: *const c_char) -> i32 {
    refuse("removing folder", name)
}

#[unsafe(no_mangle)]
extern "C" fn sys_unlink(name: *const c_char) -> i32 {
    refuse("removing file", name)
}

#[unsafe(no_mangle)]
extern "C" fn sys_socket(_domain: i32, _kind: i32, _protocol: i32) -> i32 {
    log::error!(
        "a std::net socket was refused: the kernel's sockets cannot move; use runtime::net::TcpListener \
         and TcpStream"
    );
    -ENOSYS
}

#[unsafe(no_mangle)]
extern "C" fn sys_getaddrinfo(
    name: *const c_char,
    _service: *const c_char,
    _hints: *const c_void,
    _result: *mut *mut c_void,
) -> i32 {
    refuse("resolving host", name)
}
