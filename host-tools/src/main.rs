//! `host-tools`: the information manager, its agents, and the commands users type.

fn main() -> std::process::ExitCode {
    host_tools::cli::main()
}
