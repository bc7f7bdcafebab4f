use holdfast::config::Cli;

fn main() -> std::process::ExitCode {
    holdfast::app::main(Cli::read())
}
