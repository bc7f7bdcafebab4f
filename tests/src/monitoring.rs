//! What `deploy/kubernetes/chart/prometheus` and `deploy/kubernetes/chart/grafana` ask for, and the selectors in it: as much of PromQL as is used there.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::kit::checkout;

/// A recording rule or an alert.
#[derive(Clone, Debug)]
pub struct Rule {
    pub name: String,
    pub is_alert: bool,
    pub expression: String,
}

/// A question of a dashboard.
#[derive(Clone, Debug)]
pub struct Question {
    /// Dashboard and panel.
    pub place: String,
    pub expression: String,
    pub is_sql: bool,
}

pub fn rules_folder() -> PathBuf {
    checkout().join("deploy/kubernetes/chart/prometheus")
}

pub fn dashboards_folder() -> PathBuf {
    checkout().join("deploy/kubernetes/chart/grafana")
}

/// What [`shortened`] puts for each time that the rules name: windows, waits, and ages of which an alert speaks. What is longer stays at
/// least as long.
const SHORT: [(&str, &str); 14] = [
    ("[5m]", "[10s]"),
    ("[10m]", "[15s]"),
    ("[15m]", "[20s]"),
    ("[30m]", "[20s]"),
    ("[1h]", "[30s]"),
    ("[2h]", "[30s]"),
    ("[6h]", "[40s]"),
    ("[1d]", "[40s]"),
    ("[3d]", "[50s]"),
    ("for: 1m", "for: 2s"),
    ("for: 2m", "for: 3s"),
    ("for: 5m", "for: 5s"),
    ("> bool 120", "> bool 2"),
    ("> 900", "> 15"),
];

/// The text of rules with times so short that each alert can be seen to come and to go; shares and counts stay.
///
/// # Errors
/// The rules name a time for which there is no shorter one.
pub fn shortened(rules: &str) -> anyhow::Result<String> {
    let shorten = |text: String, (long, short): &(&str, &str)| text.replace(long, short);
    let rules = SHORT.iter().fold(rules.to_owned(), shorten);
    for line in rules.lines() {
        let windows = line.split('[').skip(1).filter_map(|rest| rest.split_once(']'));
        let waits = line.trim().strip_prefix("for: ");
        let mut times = windows.map(|(window, _)| window).chain(waits);
        let long = times.find(|time| !time.ends_with('s'));
        ensure!(long.is_none(), "no shorter time is known for {long:?} in {line}");
    }
    Ok(rules)
}

/// Every rule, in the order of the files. Read as the files are written: an expression stands in lines of its own.
///
/// # Errors
/// A file cannot be read.
pub fn rules() -> anyhow::Result<Vec<Rule>> {
    let mut rules: Vec<Rule> = Vec::new();
    for file in ["objectives.yml", "alerts.yml"] {
        let path = rules_folder().join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut in_expression = false;
        for line in text.lines() {
            let content = line.trim();
            let named = content.strip_prefix("- record: ").or(content.strip_prefix("- alert: "));
            if let Some(name) = named {
                rules.push(Rule {
                    name: name.to_owned(),
                    is_alert: content.starts_with("- alert"),
                    expression: String::new(),
                });
                in_expression = false;
            } else if let Some(rule) = rules.last_mut() {
                let deep = line.starts_with("          ");
                let begins = content.strip_prefix("expr: ");
                in_expression = begins.is_some() || in_expression && deep;
                if in_expression {
                    rule.expression
                        .push_str(begins.unwrap_or(content).trim_start_matches('|'));
                    rule.expression.push('\n');
                }
            }
        }
    }
    Ok(rules)
}

/// Every question of every dashboard.
///
/// # Errors
/// A file cannot be read.
pub fn questions() -> anyhow::Result<Vec<Question>> {
    let mut questions = Vec::new();
    for entry in fs::read_dir(dashboards_folder())? {
        let dashboard: Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
        let panels = dashboard["panels"].as_array().into_iter().flatten();
        for (panel, target) in panels.flat_map(|panel| {
            let targets = panel["targets"].as_array().into_iter().flatten();
            targets.map(move |target| (panel, target))
        }) {
            let sql = target["rawSql"].as_str();
            questions.push(Question {
                place: format!("{}: {}", dashboard["title"], panel["title"]),
                expression: sql
                    .or(target["expr"].as_str())
                    .context("a panel asks nothing")?
                    .to_owned(),
                is_sql: sql.is_some(),
            });
        }
    }
    Ok(questions)
}

/// A metric with the matchers behind it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    pub metric: String,
    pub matchers: Vec<Matcher>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Matcher {
    pub label: String,
    /// `=`, `!=`, `=~` or `!~`.
    pub operator: String,
    pub value: String,
}

impl Matcher {
    /// The values that it names; a pattern is understood as a list of them.
    pub fn values(&self) -> Vec<&str> {
        match self.operator.contains('~') {
            true => self.value.split('|').collect(),
            false => vec![&self.value],
        }
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let matchers = self.matchers.iter();
        let matchers: Vec<_> = matchers
            .map(|Matcher { label, operator, value }| format!("{label}{operator}\"{value}\""))
            .collect();
        write!(f, "{}{{{}}}", self.metric, matchers.join(","))
    }
}

/// Words before a list of labels.
const LABEL_LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Every selector in an expression, as often as it stands there.
pub fn selectors(expression: &str) -> Vec<Selector> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(|letter: char| is_letter(letter) || letter == '[' || letter.is_ascii_digit()) {
        rest = &rest[start..];
        if rest.starts_with('[') {
            rest = rest.split_once(']').map_or("", |(_, rest)| rest);
            continue;
        }
        let end = rest.find(|letter: char| !is_letter(letter) && !letter.is_ascii_digit());
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        let next = after.trim_start();
        rest = after;
        if word.starts_with(|letter: char| letter.is_ascii_digit()) {
            continue;
        }
        if LABEL_LISTS.contains(&word) {
            rest = next.split_once(')').map_or("", |(_, rest)| rest);
        } else if let Some(braced) = next.strip_prefix('{') {
            let (inside, after) = braced.split_once('}').unwrap_or((braced, ""));
            found.push(Selector {
                metric: word.to_owned(),
                matchers: matchers(inside),
            });
            rest = after;
        } else if !next.starts_with('(') && word.contains(['_', ':']) {
            found.push(Selector {
                metric: word.to_owned(),
                matchers: Vec::new(),
            });
        }
    }
    found
}

fn is_letter(letter: char) -> bool {
    letter.is_ascii_alphabetic() || letter == '_' || letter == ':'
}

/// No value here holds a comma, a brace or a quote.
fn matchers(inside: &str) -> Vec<Matcher> {
    let parts = inside.split(',').filter(|part| !part.trim().is_empty());
    parts
        .map(|part| {
            let (left, value) = part.split_once('"').unwrap_or((part, ""));
            let label = left.trim().trim_end_matches(['=', '!', '~']);
            Matcher {
                label: label.to_owned(),
                operator: left.trim()[label.len()..].to_owned(),
                value: value.trim().trim_end_matches('"').to_owned(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_of_the_rules_has_a_shorter_one_and_no_other_is_listed() {
        let rules = ["objectives.yml", "alerts.yml"].map(|file| fs::read_to_string(rules_folder().join(file)).unwrap());
        let rules = rules.concat();
        let short = shortened(&rules).unwrap();
        assert_eq!(short.lines().count(), rules.lines().count());
        for (long, _) in SHORT {
            assert!(rules.contains(long), "{long} is nowhere");
        }
        assert!(shortened("expr: a[4h] > 0").is_err() && shortened("        for: 7m").is_err());
    }

    #[test]
    fn selectors_are_told_from_functions_labels_and_durations() {
        let expression = r#"sum by (part, le_x) (rate(a_total{part="x", b=~"y|z"}[5m])) / up{} > 14.4 * 0.01 or avg_over_time(c:d[1h30m])
            and max(e_seconds) > bool 2e3"#;
        let found: Vec<_> = selectors(expression).iter().map(ToString::to_string).collect();
        assert_eq!(found, [r#"a_total{part="x",b=~"y|z"}"#, "up{}", "c:d{}", "e_seconds{}"]);
        assert_eq!(selectors(expression)[0].matchers[1].values(), ["y", "z"]);
    }
}
