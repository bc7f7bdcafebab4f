//! Every setting, from flags and environment, checked before any socket opens: a file for each section, which checks itself.
//! No other module reads the environment.

mod admin;
mod certificate;
#[cfg(test)]
mod chart;
mod checkout;
mod choice;
mod command;
mod database;
mod gate;
mod insecure;
mod kafka;
mod kafka_security;
mod mail;
mod plan;
mod process;
mod provider;
mod relay;
mod reprocess;
mod restate;
mod restate_kafka;
mod roles;
mod secret;
mod serve;
mod shows;
mod traces;
mod verify;
mod webhook;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum};

pub use admin::{
    ActFilters, Admin, AdminCommand, CheckoutCommand, ChosenMails, DeadLetters, Inbox, MailCommand, MailFilters,
    Orders, Outbox, QuarantineCommand, RecoverCommand, RelayCommand, Return, Sales, ShowCommand, TicketCommand,
    UserCommand,
};
pub use certificate::CertificateFiles;
pub use checkout::{Checkout, FullRefund};
pub use choice::{Chosen, Filters, OneKey, PointInTime, Quarantined, Settle};
pub use command::{Part, Role, RoleName};
pub use database::Database;
pub use gate::Gate;
pub use insecure::Wire;
pub use kafka::Kafka;
pub use kafka_security::{KafkaProperty, KafkaSecurity, SaslMechanism, SecurityProtocol};
pub use mail::{Mail, MailLogin, MailSecurity, MailServer, deliverable};
pub use plan::Plan;
pub use process::{LogFormat, Process};
pub use provider::{Provider, ProviderMode, is_captured_at_once};
pub use relay::Relay;
pub use reprocess::{Beginning, PartitionOffset, PublicTopic, Reprocess};
pub use restate::Restate;
pub use restate_kafka::RestateKafka;
pub use roles::{Granted, Roles};
pub use secret::ReplaceableSecret;
pub use serve::Serve;
pub use shows::{ApplicationFee, ProviderShows, ShowPayments};
pub use traces::{Traces, parse_headers};
pub use verify::Verify;
pub use webhook::Webhook;

use secret::Secrets;

/// Sells seats without ever selling one twice: workers between Kafka, Restate and Postgres.
#[derive(Parser, Debug)]
#[command(name = "holdfast", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub config: Config,
    #[command(subcommand)]
    pub command: Role,
    /// The flags that show a secret on the command line.
    #[arg(skip)]
    shown: Vec<&'static str>,
}

impl Cli {
    /// Reads the secrets that lie in files; names every wrong file at once.
    ///
    /// # Errors
    /// The files that hold no secret, and the secrets that are given twice.
    pub fn read_secrets(&mut self) -> Result<(), Vec<Invalid>> {
        self.config.read_secrets()
    }

    /// Checks the settings, and what the command needs of them; names every wrong one at once.
    ///
    /// # Errors
    /// The wrong settings.
    pub fn check(&self) -> Result<(), Vec<Invalid>> {
        let mut checks = self.config.checked();
        let Config { webhook, provider, .. } = &self.config;
        let takes_webhooks = match self.command {
            Role::Webhook => true,
            Role::Run { .. } => webhook.secret.is_some(),
            _ => false,
        };
        checks.require(
            !takes_webhooks || webhook.secret.is_some(),
            "webhook-secret",
            "give the secret of the endpoint at the payment provider: without it, anybody could be the provider",
        );
        let asks_as_admin = match &self.command {
            Role::Register { .. } | Role::Verify { .. } | Role::Admin(_) => true,
            Role::Doctor { roles, .. } => {
                let asking = [RoleName::Run, RoleName::Register, RoleName::Verify, RoleName::Admin];
                roles.iter().any(|role| asking.contains(role))
            }
            Role::Run { no_register, .. } => !no_register,
            _ => false,
        };
        checks.require(
            !asks_as_admin || self.config.kafka.security.mechanism != Some(SaslMechanism::OAuthBearer),
            "kafka-sasl-mechanism",
            "give SCRAM or a client certificate to register, verify, admin and run (without --no-register), and to doctor for these: the \
             client library's requests about topics know no OAUTHBEARER",
        );
        let lives_long = !matches!(
            self.command,
            Role::Migrate { .. }
                | Role::Register { .. }
                | Role::Verify { watch: false, .. }
                | Role::Doctor { .. }
                | Role::Health { .. }
                | Role::Plan(_)
                | Role::Admin(_)
        );
        for flag in self.shown.iter().filter(|_| lives_long) {
            let variable = variable(flag);
            let what = format!(
                "give it as {variable}, or its file as --{flag}-file ({variable}_FILE): everybody on this machine can read the \
                 command line of a process that lives long"
            );
            checks.require(false, flag, &what);
        }
        // Refused at the start: the first dispute may come after months, and all its deliveries would fail.
        checks.require(
            !takes_webhooks || provider.url.is_some(),
            "provider-url",
            "give it, with --provider-key: a dispute names no checkout, its payment has to be looked up",
        );
        let Process {
            health_listen,
            http_certificate,
            ..
        } = &self.config.process;
        checks.require(
            !matches!(self.command, Role::Health { .. }) || health_listen.is_some() || http_certificate.is_none(),
            "health-listen",
            "give it to the process and to this command, which asks without TLS",
        );
        self.command.check(&mut checks);
        let serves = matches!(self.command, Role::Serve | Role::Run { .. });
        checks.secure(
            Wire::Restate,
            !serves || self.config.serve.is_guarded(),
            "identity-key",
            "give the engine's public key, or have serve listen on a loopback address: without the key, whoever reaches it is obeyed",
        );
        checks.finish()
    }

    /// Reads the command line and the environment; ends the process when they cannot be understood, and says why.
    pub fn read() -> Self {
        let read = Self::command().try_get_matches().and_then(|matches| {
            let mut cli = Self::from_arg_matches(&matches)?;
            cli.shown = secret::shown(&matches);
            Ok(cli)
        });
        read.unwrap_or_else(|error| naming_the_variable(error).exit())
    }
}

/// The parser names only the flag, also when the wrong value stands in the environment.
fn naming_the_variable(mut error: clap::Error) -> clap::Error {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.split(' ').next().unwrap_or_default(),
        _ => "",
    };
    if let (Some(flag), ErrorKind::ValueValidation | ErrorKind::InvalidValue) =
        (argument.strip_prefix("--"), error.kind())
    {
        let tip = format!("the value may stand in the environment, as {}", variable(flag));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// All settings. Each module receives only its own section.
#[derive(Args, Debug, Clone)]
pub struct Config {
    #[command(flatten)]
    pub kafka: Kafka,
    #[command(flatten)]
    pub database: Database,
    #[command(flatten)]
    pub restate: Restate,
    #[command(flatten)]
    pub gate: Gate,
    #[command(flatten)]
    pub serve: Serve,
    #[command(flatten)]
    pub checkout: Checkout,
    #[command(flatten)]
    pub relay: Relay,
    #[command(flatten)]
    pub provider: Provider,
    #[command(flatten)]
    pub mail: Mail,
    #[command(flatten)]
    pub webhook: Webhook,
    #[command(flatten)]
    pub verify: Verify,
    #[command(flatten)]
    pub traces: Traces,
    #[command(flatten)]
    pub process: Process,
}

impl Config {
    /// As [`Cli::read_secrets`].
    ///
    /// # Errors
    /// The files that hold no secret, and the secrets that are given twice.
    pub fn read_secrets(&mut self) -> Result<(), Vec<Invalid>> {
        let mut secrets = Secrets::default();
        self.kafka.security.read_secrets(&mut secrets);
        self.database.read_secrets(&mut secrets);
        self.restate.read_secrets(&mut secrets);
        self.provider.read_secrets(&mut secrets);
        self.mail.read_secrets(&mut secrets);
        self.webhook.read_secrets(&mut secrets);
        self.traces.read_secrets(&mut secrets);
        secrets.finish()
    }

    /// Has each section check its values beyond what the parser checks.
    ///
    /// # Errors
    /// Every wrong setting.
    pub fn check(&self) -> Result<(), Vec<Invalid>> {
        self.checked().finish()
    }

    fn checked(&self) -> Checks {
        let mut checks = Checks {
            insecure: self.process.insecure.clone(),
            ..Checks::default()
        };
        self.kafka.check(&mut checks);
        self.database.check(&mut checks);
        self.restate.check(&mut checks, &self.kafka);
        self.gate.check(&mut checks);
        self.serve.check(&mut checks);
        self.checkout.check(&mut checks);
        self.relay.check(&mut checks);
        self.provider.check(&mut checks);
        self.mail.check(&mut checks);
        self.webhook.check(&mut checks);
        self.verify.check(&mut checks);
        self.traces.check(&mut checks);
        self.process.check(&mut checks);
        checks
    }
}

/// The wrong settings that were found so far.
#[derive(Debug, Default)]
struct Checks {
    wrong: Vec<Invalid>,
    /// The wires that the operator leaves open.
    insecure: Vec<Wire>,
}

impl Checks {
    /// Notes the setting as wrong, and `what` mends it, unless the condition holds.
    fn require(&mut self, holds: bool, flag: &'static str, what: &str) {
        if !holds {
            let what = what.to_owned();
            self.wrong.push(Invalid { flag, what });
        }
    }

    /// As [`Checks::require`], for what keeps a wire closed: `--insecure` leaves it open, by name.
    fn secure(&mut self, wire: Wire, holds: bool, flag: &'static str, what: &str) {
        let name = wire
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned());
        let what = format!("{what}; --insecure {name} (HOLDFAST_INSECURE) leaves it open");
        self.require(holds || self.insecure.contains(&wire), flag, &what);
    }

    fn finish(self) -> Result<(), Vec<Invalid>> {
        if self.wrong.is_empty() { Ok(()) } else { Err(self.wrong) }
    }
}

/// A setting that cannot work: its flag, and what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--{flag} ({}): {what}", variable(.flag))]
pub struct Invalid {
    pub flag: &'static str,
    pub what: String,
}

/// The environment variable of a flag.
fn variable(flag: &str) -> String {
    format!("HOLDFAST_{}", flag.to_uppercase().replace('-', "_"))
}

fn is_a_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Config {
        Cli::parse_from([&["holdfast"], args, &["migrate"]].concat()).config
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_accepted() {
        assert_eq!(config(&[]).check(), Ok(()));
    }

    #[test]
    fn every_wrong_setting_is_named_at_once_with_its_mend() {
        let wrong = config(&["--kafka", "nowhere", "--partitions", "0", "--relay-batch", "5000"])
            .check()
            .unwrap_err();
        let text: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 3, "{text:?}");
        assert!(
            text[0].starts_with("--kafka (HOLDFAST_KAFKA): give host:port"),
            "{text:?}"
        );
        assert!(text[1].contains("HOLDFAST_PARTITIONS"), "{text:?}");
    }

    #[test]
    fn a_provider_has_an_address_and_a_key_or_neither() {
        let provider = |args: &[&str]| config(args).check().map_err(|wrong| wrong[0].flag);
        let (url, key) = ("--provider-url", "--provider-key");
        assert_eq!(provider(&[url, "https://pay.example", key, "sk_1"]), Ok(()));
        assert_eq!(provider(&[url, "https://pay.example"]), Err("provider-key"));
        assert_eq!(provider(&[key, "sk_1"]), Err("provider-key"));
        assert_eq!(
            provider(&[url, "https://pay.example", key, "sk_1\n"]),
            Err("provider-key")
        );
        for wrong in [
            "ftp://pay.example",
            "https://a:b@pay.example",
            "https://pay.example?key=1",
        ] {
            assert_eq!(provider(&[url, wrong, key, "sk_1"]), Err("provider-url"), "{wrong}");
        }
        let back = "--provider-return-url";
        assert_eq!(provider(&[back, "https://shop.example/paid?from=bank"]), Ok(()));
        for wrong in ["ftp://shop.example", "https://a:b@shop.example"] {
            assert_eq!(provider(&[back, wrong]), Err("provider-return-url"), "{wrong}");
        }
    }

    #[test]
    fn traces_go_to_a_collector_on_this_machine_or_by_tls_and_are_a_share() {
        let traces = |args: &[&str]| config(args).check().map_err(|wrong| wrong[0].flag);
        let url = "--traces-endpoint";
        for right in ["http://127.0.0.1:4318/v1/traces", "https://collector.example/v1/traces"] {
            assert_eq!(traces(&[url, right]), Ok(()), "{right}");
        }
        for wrong in [
            "grpc://127.0.0.1:4317",
            "http://collector.example/v1/traces",
            "https://a:b@collector.example",
            "https://collector.example?token=1",
        ] {
            assert_eq!(traces(&[url, wrong]), Err("traces-endpoint"), "{wrong}");
        }
        assert_eq!(
            traces(&[url, "http://collector.example/v1/traces", "--insecure", "traces"]),
            Ok(())
        );
        for (share, expected) in [
            ("0", Ok(())),
            ("1", Ok(())),
            ("1.1", Err("traces-sample")),
            ("NaN", Err("traces-sample")),
        ] {
            assert_eq!(traces(&["--traces-sample", share]), expected, "{share}");
        }
        assert_eq!(traces(&["--traces-headers", "sesame"]), Err("traces-headers"));
    }

    #[test]
    fn the_prometheus_that_doctor_asks_has_an_address_that_can_be_printed() {
        let check = |url: &str| {
            let wrong = Cli::parse_from(["holdfast", "doctor", "--prometheus", url]).check();
            wrong.map_err(|wrong| wrong[0].flag)
        };
        for right in ["http://127.0.0.1:9090", "https://monitoring.example/prometheus/"] {
            assert_eq!(check(right), Ok(()), "{right}");
        }
        for wrong in [
            "localhost:9090",
            "https://a:b@monitoring.example",
            "https://monitoring.example?token=1",
        ] {
            assert_eq!(check(wrong), Err("prometheus"), "{wrong}");
        }
    }

    #[test]
    fn test_mode_and_live_mode_are_never_given_together() {
        let modes = |mode: &[&str], key: &str| {
            let provider = ["--provider-url", "https://pay.example", "--provider-key", key];
            let config = config(&[&provider[..], mode].concat());
            let known = config.provider.known_mode();
            config
                .check()
                .map(|()| (known, config.provider.rate()))
                .map_err(|wrong| wrong[0].flag)
        };
        let (test, live) = (["--provider-mode", "test"], ["--provider-mode", "live"]);
        let (is_test, is_live) = (Some(ProviderMode::Test), Some(ProviderMode::Live));
        assert_eq!(modes(&[], "sk_test_1"), Ok((is_test, 25)));
        assert_eq!(modes(&live, "rk_live_1"), Ok((is_live, 100)));
        assert_eq!(modes(&[], "sesame"), Ok((None, 25)));
        assert_eq!(modes(&live, "sesame"), Ok((is_live, 100)));
        assert_eq!(modes(&live, "rk_test_1"), Err("provider-mode"));
        assert_eq!(modes(&test, "sk_live_1"), Err("provider-mode"));
        let methods = |names: &str| modes(&["--provider-methods", names], "sk_test_1").map(drop);
        assert_eq!(methods("card,klarna,paypal"), Ok(()));
        for wrong in ["", "card,", "Card", "card,multibanco"] {
            assert_eq!(methods(wrong), Err("provider-methods"), "{wrong}");
        }
        let calls = ["--provider-calls-per-second", "7"];
        assert_eq!(modes(&calls, "sk_live_1"), Ok((is_live, 7)));
        assert_eq!(
            modes(&["--provider-calls-per-second", "0"], "sk_live_1"),
            Err("provider-calls-per-second")
        );
    }

    #[test]
    fn a_mail_server_is_one_that_can_be_spoken_to_and_comes_with_a_sender() {
        let mail = |args: &[&str]| config(args).check().map_err(|wrong| wrong[0].flag);
        let (url, from) = ("--smtp-url", "--mail-from");
        for right in [
            "smtp://127.0.0.1:1025",
            "smtps://shop:se%40same@mail.example",
            "smtp://shop:sesame@mail.example:2525?tls=required",
        ] {
            assert_eq!(mail(&[url, right, from, "tickets@example.org"]), Ok(()), "{right}");
        }
        for wrong in [
            "mail.example",
            "http://mail.example",
            "smtp:mail.example",
            "smtp://mail.example?tls=maybe",
            "smtp://shop@mail.example",
            "smtp://mail.example/shop",
        ] {
            assert_eq!(
                mail(&[url, wrong, from, "tickets@example.org"]),
                Err("smtp-url"),
                "{wrong}"
            );
        }
        for wrong in [
            "tickets",
            "Tickets <tickets@example.org>",
            "a@b.org\r\nBcc: c@d.org",
            "żółw@example.org",
            "",
        ] {
            assert_eq!(
                mail(&[url, "smtp://127.0.0.1", from, wrong]),
                Err("mail-from"),
                "{wrong}"
            );
        }
        assert_eq!(mail(&[url, "smtp://127.0.0.1"]), Err("mail-from"));
        assert_eq!(mail(&[from, "tickets@example.org"]), Err("mail-from"));
    }

    #[test]
    fn whoever_takes_webhooks_needs_their_secret_and_a_provider_to_ask() {
        let check = |args: &[&str]| {
            let wrong = Cli::parse_from([&["holdfast"], args].concat()).check();
            let flags = |wrong: Vec<Invalid>| wrong.iter().map(|setting| setting.flag).collect::<Vec<_>>();
            wrong.map_err(flags)
        };
        let provider = ["--provider-url", "https://pay.example", "--provider-key", "sk_1"];
        let with = |args: &[&'static str]| [args, &provider].concat();
        let secret = "--webhook-secret";
        assert_eq!(check(&with(&["webhook", secret, "whsec_1"])), Ok(()));
        assert_eq!(check(&with(&["webhook", secret, "whsec_1,whsec_2"])), Ok(()));
        assert_eq!(check(&["run"]), Ok(()));
        assert_eq!(check(&["gate", secret, "whsec_1"]), Ok(()));
        assert_eq!(check(&with(&["webhook"])), Err(vec!["webhook-secret"]));
        assert_eq!(check(&["webhook"]), Err(vec!["webhook-secret", "provider-url"]));
        assert_eq!(check(&["run", secret, "whsec_1"]), Err(vec!["provider-url"]));
        for wrong in ["", ",", "whsec_1,", "whsec_1, whsec_2", "whsec_1\n"] {
            assert_eq!(
                check(&with(&["webhook", secret, wrong])),
                Err(vec!["webhook-secret"]),
                "{wrong:?}"
            );
        }
        let tolerance = ["webhook", secret, "whsec_1", "--webhook-tolerance", "0s"];
        assert_eq!(check(&with(&tolerance)), Err(vec!["webhook-tolerance"]));
    }

    #[test]
    fn the_providers_key_goes_over_no_open_wire_beyond_this_machine() {
        let check = |args: &[&str]| config(&[&["--provider-key", "sk_1"], args].concat()).check();
        for closed in [
            "https://pay.example",
            "http://127.0.0.1:4242",
            "http://[::1]:4242",
            "http://localhost",
        ] {
            assert_eq!(check(&["--provider-url", closed]), Ok(()), "{closed}");
        }
        let wrong = check(&["--provider-url", "http://pay.example"]).unwrap_err();
        assert!(
            wrong[0]
                .to_string()
                .ends_with("--insecure provider (HOLDFAST_INSECURE) leaves it open"),
            "{}",
            wrong[0]
        );
        let opened = ["--provider-url", "http://pay.example", "--insecure", "smtp,provider"];
        assert_eq!(check(&opened), Ok(()));
    }

    #[test]
    fn no_secret_of_the_engine_or_of_mail_goes_over_an_open_wire_beyond_this_machine() {
        let check = |args: &[&str]| config(args).check().map_err(|wrong| wrong[0].flag);
        let (token, admin, ingress) = ("--restate-token", "--restate-admin", "--restate-ingress");
        let closed = "https://engine.example";
        assert_eq!(check(&[admin, "http://engine:9070"]), Ok(()));
        assert_eq!(check(&[token, "t"]), Ok(()));
        assert_eq!(check(&[token, "t", admin, closed, ingress, closed]), Ok(()));
        assert_eq!(check(&[token, "t", admin, "http://engine:9070"]), Err("restate-admin"));
        assert_eq!(
            check(&[token, "t", ingress, "http://engine:8080"]),
            Err("restate-ingress")
        );
        let opened = [token, "t", admin, "http://engine:9070", "--insecure", "restate"];
        assert_eq!(check(&opened), Ok(()));
        assert_eq!(check(&[token, "t t"]), Err("restate-token"));

        let smtp = ["--mail-from", "tickets@example.org", "--smtp-url"];
        let mail = |args: &[&str]| check(&[&smtp, args].concat());
        assert_eq!(mail(&["smtp://shop:sesame@mail.example?tls=required"]), Ok(()));
        assert_eq!(mail(&["smtp://localhost:1025"]), Ok(()));
        assert_eq!(mail(&["smtp://shop:sesame@mail.example"]), Err("smtp-url"));
        assert_eq!(mail(&["smtp://mail.example"]), Err("smtp-url"));
        assert_eq!(mail(&["smtp://mail.example", "--insecure", "smtp"]), Ok(()));
    }

    #[test]
    fn serve_is_reached_from_elsewhere_only_by_an_engine_that_signs() {
        let check = |args: &[&str]| {
            let wrong = Cli::parse_from([&["holdfast"], args].concat()).check();
            wrong.map_err(|wrong| wrong.iter().map(|setting| setting.flag).collect::<Vec<_>>())
        };
        let key = "publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f";
        let both = format!("{key},{key}");
        let (open, wants) = (["--serve-listen", "0.0.0.0:9080"], Err(vec!["identity-key"]));
        let with = |args: &[&'static str]| [args, &open].concat();
        assert_eq!(check(&["serve", "--serve-listen", "[::1]:9080"]), Ok(()));
        assert_eq!(check(&with(&["gate"])), Ok(()));
        assert_eq!(check(&with(&["serve"])), wants);
        assert_eq!(check(&with(&["run"])), wants);
        assert_eq!(check(&with(&["serve", "--insecure", "restate"])), Ok(()));
        assert_eq!(
            check(&[&with(&["serve"])[..], &["--identity-key", key]].concat()),
            Ok(())
        );
        assert_eq!(check(&["serve", "--identity-key", &both]), Ok(()));
        for wrong in [
            "",
            key.trim_start_matches("publickeyv1_"),
            "publickeyv1_0OIl",
            &format!("{key},"),
        ] {
            assert_eq!(check(&["serve", "--identity-key", wrong]), wants, "{wrong}");
        }
    }

    #[test]
    fn a_certificate_comes_with_its_private_key() {
        for (flags, wrong) in [
            (["--serve-certificate", "--serve-private-key"], "serve-certificate"),
            (
                ["--webhook-certificate", "--webhook-private-key"],
                "webhook-certificate",
            ),
            (["--http-certificate", "--http-private-key"], "http-certificate"),
        ] {
            let check = |args: &[&str]| config(args).check().map_err(|wrong| wrong[0].flag);
            assert_eq!(check(&[flags[0], "a.crt", flags[1], "a.key"]), Ok(()));
            assert_eq!(check(&[flags[0], "a.crt"]), Err(wrong));
            assert_eq!(check(&[flags[1], "a.key"]), Err(wrong));
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        let config = config(&["--database-url", "postgres://holdfast:sesame@db/holdfast"]);
        assert!(!format!("{config:?}").contains("sesame"));
        let config = self::config(&["--provider-url", "https://pay.example", "--provider-key", "sk_sesame"]);
        assert!(!format!("{config:?}").contains("sesame"));
        let config = self::config(&["--smtp-url", "smtps://shop:sesame@mail.example"]);
        assert!(!format!("{config:?}").contains("sesame"));
        let config = self::config(&["--restate-token", "sesame"]);
        assert!(!format!("{config:?}").contains("sesame"));
        let config = self::config(&["--webhook-secret", "whsec_sesame"]);
        assert!(!format!("{config:?}").contains("sesame"));
    }
}
