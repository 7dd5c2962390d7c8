//! The first code of ours on the running kernel: devices up, then the service or standby.

use core::ptr::addr_of;
use core::str::FromStr;

use ferry_abi::Machine;
use ferry_protocol::control::State;
use ferry_protocol::layout::{BuildId, PAGE_SIZE};
use heapless::Vec;
use spin::Once;

use crate::boot::{boot, guard, statics_end};
use crate::{clock, control, exports, lapic, nic, park, random, side, uart};

/// Bytes of the portable stack.
const STACK: u64 = 1 << 20;
/// Bytes of all service arguments.
const ARGUMENTS: usize = 4096;

unsafe extern "C" {
    /// The portable side's first function, in the `runtime` crate.
    fn portable_entry() -> !;
    /// Runs through a switch once, for a standby; parks and never goes on.
    fn portable_rehearsal() -> !;
    static __ehdr_start: ElfHeader;
    static ferry_build_id: u8;
}

/// Where things lie behind the portable statics; the same on every machine for one image.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Lowest address of the stack; the page below it is not mapped.
    pub stack_start: u64,
    pub stack_end: u64,
    /// Thread pointer; the TLS block ends there.
    pub thread_pointer: u64,
    pub heap_start: u64,
    /// End of the portable region of this machine.
    pub end: u64,
}

struct Facts {
    places: Places,
    machine: Machine,
    arguments: Vec<u8, ARGUMENTS>,
}

// SAFETY: the raw pointer in `Machine` points into `arguments`, which is never written after it is set.
unsafe impl Sync for Facts {}
// SAFETY: as above.
unsafe impl Send for Facts {}

static FACTS: Once<Facts> = Once::new();

/// Where the portable side's parts lie.
pub fn places() -> Places {
    FACTS.get().expect("set at entry").places
}

/// What the portable side is told.
pub fn machine() -> &'static Machine {
    &FACTS.get().expect("set at entry").machine
}

/// What the command line asks of the machine.
#[derive(Debug)]
struct Options<'a> {
    standby: bool,
    epoch: u64,
    ip: [u8; 4],
    prefix: u8,
    gateway: [u8; 4],
    log_level: u8,
    /// After `--`.
    service: core::str::SplitAsciiWhitespace<'a>,
}

/// An argument that means nothing to the machine.
struct BadOption<'a>(&'a str);

fn parse(line: &str) -> Result<Options<'_>, BadOption<'_>> {
    let mut options = Options {
        standby: false,
        epoch: 0,
        ip: [0; 4],
        prefix: 24,
        gateway: [0; 4],
        log_level: 3,
        service: line.split_ascii_whitespace(),
    };
    let address = |text: &str| core::net::Ipv4Addr::from_str(text).ok().map(|ip| ip.octets());
    let mut machine = true;
    while machine && let Some(word) = options.service.next() {
        let bad = BadOption(word);
        match word.split_once('=').unwrap_or((word, "")) {
            ("--", _) => machine = false,
            ("standby", "") => options.standby = true,
            ("epoch", value) => options.epoch = value.parse().map_err(|_| bad)?,
            ("gw", value) => options.gateway = address(value).ok_or(bad)?,
            ("ip", value) => {
                let (ip, prefix) = value.split_once('/').unwrap_or((value, "24"));
                options.prefix =
                    prefix.parse().ok().filter(|bits| *bits <= 32).ok_or(BadOption(word))?;
                options.ip = address(ip).ok_or(bad)?;
            }
            ("log", value) => {
                options.log_level = ["off", "error", "warn", "info", "debug", "trace"]
                    .iter()
                    .position(|name| *name == value)
                    .ok_or(bad)? as u8;
            }
            _ => return Err(bad),
        }
    }
    Ok(options)
}

/// Hermit calls this where it would start an application.
#[unsafe(no_mangle)]
extern "C" fn host_entry(_argc: i32, _argv: *const *const u8, _env: *const *const u8) -> ! {
    lapic::init();
    clock::init();
    let options = match parse(boot().command_line) {
        Ok(options) => options,
        Err(BadOption(word)) => stop(format_args!(
            "boot argument '{word}' is unknown or wrong; known are ip=A.B.C.D/P gw=A.B.C.D standby \
             epoch=N log=off|error|warn|info|debug|trace, then -- and the service's arguments"
        )),
    };
    let mac = match nic::init() {
        Ok(mac) => mac,
        Err(error) => stop(format_args!("{error}")),
    };
    if !random::has_rdrand() {
        log::warn!(
            "this CPU has no RDRAND: random numbers can be guessed; start qemu with -cpu max"
        );
    }
    let places = lay_out();
    set_facts(&options, mac, places);
    uart::open_control_port();
    if options.standby {
        initialise_tls(&places);
        // SAFETY: as below. The agent wipes the region after `ready`, and a resume adopts another stack.
        unsafe { side::prepare(places.stack_end, places.thread_pointer, portable_rehearsal) };
        side::run_portable();
        control::ready(State::Standby, 0);
    } else {
        initialise_tls(&places);
        // SAFETY: the stack lies behind the portable statics, used by nobody else, and the thread
        // pointer's block has just been initialised.
        unsafe { side::prepare(places.stack_end, places.thread_pointer, portable_entry) };
        control::ready(State::Running, options.epoch);
    }
    park::run()
}

fn stop(reason: core::fmt::Arguments<'_>) -> ! {
    uart::early_print(format_args!("ferry: {reason}\n"));
    exports::power_off()
}

fn set_facts(options: &Options<'_>, mac: [u8; 6], places: Places) {
    let facts = FACTS.call_once(|| {
        let mut arguments = Vec::new();
        for argument in options.service.clone() {
            if arguments.extend_from_slice(argument.as_bytes()).is_err()
                || arguments.push(0).is_err()
            {
                stop(format_args!("the service's arguments are longer than {ARGUMENTS} bytes"));
            }
        }
        Facts {
            places,
            machine: Machine {
                ip: options.ip,
                gateway: options.gateway,
                prefix: options.prefix,
                log_level: options.log_level,
                mac,
                heap_start: places.heap_start,
                portable_end: places.end,
                stack_start: places.stack_start,
                args: core::ptr::null(),
                args_len: arguments.len() as u64,
            },
            arguments,
        }
    });
    // The arguments have their final address only now.
    let machine = (&raw const facts.machine).cast_mut();
    // SAFETY: nobody else runs yet, so nobody has borrowed the field that is written.
    unsafe { (&raw mut (*machine).args).write(facts.arguments.as_ptr()) };
}

/// Statics | guard page | stack | TLS | heap.
fn lay_out() -> Places {
    let page = PAGE_SIZE as u64;
    let end = boot().portable_end;
    let guard_page = statics_end().next_multiple_of(page);
    guard(guard_page, end);
    let stack_start = guard_page + page;
    let stack_end = stack_start + STACK;
    let tls = tls_segment();
    let align = tls.map_or(16, |tls| tls.align.max(16));
    let block = tls.map_or(0, |tls| tls.memory_size.next_multiple_of(align));
    let thread_pointer = (stack_end + block).next_multiple_of(align);
    Places {
        stack_start,
        stack_end,
        thread_pointer,
        // The thread pointer points to itself; a page more keeps the stack protector's slot mapped.
        heap_start: (thread_pointer + 64).next_multiple_of(page),
        end,
    }
}

/// Copies the image's TLS template below the thread pointer (ELF Handling For TLS, variant II).
fn initialise_tls(places: &Places) {
    let thread_pointer = places.thread_pointer as *mut u64;
    if let Some(tls) = tls_segment() {
        let size = tls.memory_size.next_multiple_of(tls.align.max(1));
        let block = (places.thread_pointer - size) as *mut u8;
        // SAFETY: the block lies between stack and heap, where nothing else is; the template is part
        // of the image.
        unsafe {
            block.write_bytes(0, size as usize);
            block.copy_from_nonoverlapping(tls.start as *const u8, tls.file_size as usize);
        }
    }
    // SAFETY: the words at the thread pointer lie below the heap.
    unsafe { thread_pointer.write(places.thread_pointer) };
}

#[repr(C)]
struct ElfHeader {
    identification: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    program_headers: u64,
    section_headers: u64,
    flags: u32,
    header_size: u16,
    program_header_size: u16,
    program_header_count: u16,
}

#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    start: u64,
    physical: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// The image's `PT_TLS` program header.
fn tls_segment() -> Option<&'static ProgramHeader> {
    const PT_TLS: u32 = 7;
    // SAFETY: the link script puts the ELF header and the program headers at the image's start.
    let headers = unsafe {
        let header = &*addr_of!(__ehdr_start);
        let first = addr_of!(__ehdr_start) as u64 + header.program_headers;
        core::slice::from_raw_parts(
            first as *const ProgramHeader,
            usize::from(header.program_header_count),
        )
    };
    headers.iter().find(|header| header.kind == PT_TLS && header.memory_size > 0)
}

/// The image's build id: the descriptor of its `NT_GNU_BUILD_ID` note.
pub fn build_id() -> BuildId {
    let note = addr_of!(ferry_build_id);
    let mut id = [0; 32];
    // SAFETY: the linker puts the note there: name size, descriptor size, type, "GNU\0", descriptor.
    unsafe {
        let size = note.add(4).cast::<u32>().read_unaligned() as usize;
        let len = size.min(id.len());
        id[..len].copy_from_slice(core::slice::from_raw_parts(note.add(16), len));
    }
    id
}
