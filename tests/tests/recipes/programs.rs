//! The recipes as programs: what each needs is fetched, and that in TypeScript compiled.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use holdfast_tests::kit::fetch::{OfRecipes, of_recipes};
use holdfast_tests::kit::{checkout, dev_folder, process};

#[derive(Clone, Copy, Debug)]
pub(super) enum Language {
    Rust,
    Python,
    Java,
    TypeScript,
}

pub(super) const LANGUAGES: [Language; 4] = [Language::Rust, Language::Python, Language::Java, Language::TypeScript];

impl Language {
    pub(super) fn name(self) -> &'static str {
        match self {
            Language::Rust => "rust",
            Language::Python => "python",
            Language::Java => "java",
            Language::TypeScript => "typescript",
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Program {
    Read,
    Send,
}

pub(super) struct Programs {
    /// Built by cargo beside what is running now.
    rust: PathBuf,
    others: OfRecipes,
    /// What the compiler made of the recipes in TypeScript.
    compiled: PathBuf,
}

impl Programs {
    pub(super) fn prepare() -> anyhow::Result<Programs> {
        let others = of_recipes()?;
        let compiled = compile(&others.typescript)?;
        let me = std::env::current_exe()?;
        let target = me.ancestors().nth(2).context("no folder of the target")?;
        let rust = target.join("examples");
        ensure!(
            rust.join("send").is_file(),
            "no {}/send: run `cargo build --workspace --examples`",
            rust.display()
        );
        Ok(Programs { rust, others, compiled })
    }

    /// The recipe as a process that does not outlive the kit, still without its arguments.
    pub(super) fn command(&self, language: Language, program: Program) -> Command {
        let (name, class) = match program {
            Program::Read => ("read", "Read"),
            Program::Send => ("send", "Send"),
        };
        match language {
            Language::Rust => process::command(&self.rust.join(name), None),
            Language::Python => {
                let mut command = process::command(&self.others.python, None);
                command.arg(sources(language).join(format!("{name}.py")));
                command
            }
            Language::Java => {
                let mut command = process::command("java".as_ref(), None);
                command
                    .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
                    .arg("-cp")
                    .arg(self.others.java.join("*"))
                    .arg(sources(language).join(format!("{class}.java")));
                command
            }
            Language::TypeScript => self.node(name),
        }
    }

    /// The service of a stranger's own, on this port.
    pub(super) fn service(&self, port: u16) -> Command {
        let mut command = self.node("service");
        command.arg(port.to_string());
        command
    }

    fn node(&self, name: &str) -> Command {
        let mut command = process::command("node".as_ref(), None);
        command.arg(self.compiled.join(format!("{name}.js")));
        command
    }
}

fn sources(language: Language) -> PathBuf {
    checkout().join("docs/recipes").join(language.name())
}

/// Compiles the recipes in TypeScript, in a folder of their own beside the packages.
fn compile(packages: &Path) -> anyhow::Result<PathBuf> {
    let folder = dev_folder().join("recipes-typescript");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    symlink(packages, folder.join("node_modules"))?;
    for entry in fs::read_dir(sources(Language::TypeScript))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), folder.join(entry.file_name()))?;
        }
    }
    let mut compiler = Command::new("node");
    compiler.arg("node_modules/typescript/bin/tsc").current_dir(&folder);
    process::output(compiler)?;
    Ok(folder.join("dist"))
}
