pub fn main(_: crate::config::Cli) -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
