//! `docs/on-call.md`, as a program reads it: chapters, and in them the sections of alerts, the commands, and what these show.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;

use crate::kit::checkout;

/// A part of the page under a heading of its own.
#[derive(Debug, Default)]
pub struct Chapter {
    /// The alerts that have a section here.
    pub sections: Vec<Section>,
    pub steps: Vec<Step>,
}

/// The section of an alert.
#[derive(Debug)]
pub struct Section {
    pub alert: String,
    pub text: String,
}

/// Commands that a reader runs at once.
#[derive(Debug)]
pub struct Step {
    pub commands: String,
    /// Lines that show up in what they print, or parts of such lines.
    pub shows: Vec<String>,
}

pub fn file() -> PathBuf {
    checkout().join("docs/on-call.md")
}

/// The page as it stands in this checkout.
///
/// # Errors
/// It cannot be read.
pub fn page() -> anyhow::Result<Vec<Chapter>> {
    let text = fs::read_to_string(file()).with_context(|| file().display().to_string())?;
    Ok(parsed(&text))
}

fn parsed(page: &str) -> Vec<Chapter> {
    let mut chapters: Vec<Chapter> = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("## ") {
            chapters.push(Chapter::default());
        }
        let Some(chapter) = chapters.last_mut() else {
            continue;
        };
        if let Some(alert) = line.strip_prefix("### ") {
            chapter.sections.push(Section {
                alert: alert.to_owned(),
                text: String::new(),
            });
        } else if let Some(kind) = line.strip_prefix("```") {
            let block = block(&mut lines);
            chapter.note(&block);
            chapter.take(kind, block);
        } else {
            chapter.note(line);
            chapter.note("\n");
        }
    }
    chapters
}

impl Chapter {
    fn note(&mut self, text: &str) {
        if let Some(section) = self.sections.last_mut() {
            section.text += text;
        }
    }

    fn take(&mut self, kind: &str, block: String) {
        match kind {
            "bash" => self.steps.push(Step {
                commands: block,
                shows: Vec::new(),
            }),
            _ => {
                let shown = block.lines().map(str::to_owned);
                if let Some(step) = self.steps.last_mut() {
                    step.shows.extend(shown);
                }
            }
        }
    }
}

/// The lines up to the end of a fenced block.
fn block<'a>(lines: &mut impl Iterator<Item = &'a str>) -> String {
    let inside = lines.take_while(|line| *line != "```");
    inside.map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_what_they_show_are_told_from_the_words_between() {
        let page = "# Title\n## One\nwords\n```bash\na\n\nb\n```\n### Alert\n**Find**\n```bash\nc\n```\nmore\n```text\nd\ne\n```\n## Two\n";
        let chapters = parsed(page);
        assert_eq!(chapters.len(), 2);
        let one = &chapters[0];
        let commands: Vec<_> = one.steps.iter().map(|step| step.commands.as_str()).collect();
        assert_eq!(commands, ["a\n\nb\n", "c\n"]);
        assert_eq!(one.steps[1].shows, ["d", "e"]);
        assert_eq!(one.sections[0].alert, "Alert");
        assert_eq!(one.sections[0].text, "**Find**\nc\nmore\nd\ne\n");
    }
}
