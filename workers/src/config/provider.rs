//! Settings: the payment provider.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::insecure::is_closed;
use super::secret::{ReplaceableSecret, Secrets};
use super::{Checks, ProviderShows, Wire, is_a_word};

const MOST_CALLS: u32 = 100_000;

/// Payment methods of Stripe that are captured as soon as the bank pays: at once, or, by debits, after days.
const CAPTURED_AT_ONCE: &[&str] = &[
    "acss_debit",
    "alipay",
    "au_becs_debit",
    "bacs_debit",
    "bancontact",
    "blik",
    "eps",
    "fpx",
    "giropay",
    "grabpay",
    "ideal",
    "p24",
    "pix",
    "sepa_debit",
    "sofort",
    "us_bank_account",
    "wechat_pay",
];

/// Payment methods of Stripe by which the customer pays somewhere else, some day: no hold lasts as long.
const PAID_SOME_DAY: &[&str] = &["boleto", "customer_balance", "konbini", "multibanco", "oxxo"];

/// True of a payment method that cannot be authorised without being captured.
pub fn is_captured_at_once(method: &str) -> bool {
    CAPTURED_AT_ONCE.contains(&method)
}

/// The payment provider, and the time-out of its answers.
#[derive(Args, Debug, Clone)]
pub struct Provider {
    /// The payment provider's API, as Stripe serves it. Without it, checkouts that need money are refused.
    #[arg(
        id = "provider-url",
        long = "provider-url",
        env = "HOLDFAST_PROVIDER_URL",
        global = true
    )]
    pub url: Option<Url>,
    /// The secret key for that API. One account serves one installation: payments are found by the checkout's id.
    #[arg(
        long = "provider-key",
        env = "HOLDFAST_PROVIDER_KEY",
        hide_env_values = true,
        global = true
    )]
    pub key: Option<SecretString>,
    /// File that holds --provider-key; it is read again for each call, so that the key can be replaced.
    #[arg(
        id = "provider-key-file",
        long = "provider-key-file",
        env = "HOLDFAST_PROVIDER_KEY_FILE",
        value_name = "FILE",
        global = true
    )]
    pub key_file: Option<PathBuf>,
    /// The page to which the bank sends the customer back after a confirmation, with the checkout's id as `checkout` in its query.
    /// Payment methods that leave the shop's page need it.
    #[arg(
        id = "provider-return-url",
        long = "provider-return-url",
        env = "HOLDFAST_PROVIDER_RETURN_URL",
        value_name = "URL",
        global = true
    )]
    pub return_url: Option<Url>,
    /// Longest time one call may take; after that its result is unknown, and Holdfast asks for the payment's state.
    #[arg(long = "provider-timeout", env = "HOLDFAST_PROVIDER_TIMEOUT", default_value = "20s", value_parser = humantime::parse_duration, global = true)]
    pub timeout: Duration,
    /// Most calls a second to that API by this process, of each kind: those that read and those that change something. The account's
    /// limits are shared by all processes. Without it 100, or 25 unless the key is one of live mode, which are Stripe's limits.
    #[arg(
        id = "provider-calls-per-second",
        long = "provider-calls-per-second",
        env = "HOLDFAST_PROVIDER_CALLS_PER_SECOND",
        global = true
    )]
    pub calls_per_second: Option<u32>,
    /// The mode of the account, for a key that does not tell it by its beginning, as Stripe's do (sk_test_, rk_live_ and so on).
    /// Events and payments of the other mode are never taken.
    #[arg(
        id = "provider-mode",
        long = "provider-mode",
        env = "HOLDFAST_PROVIDER_MODE",
        value_enum,
        global = true
    )]
    pub mode: Option<ProviderMode>,
    /// File (JSON) that says, by show, what its payments have of their own: on_behalf_of, transfer_destination, application_fee,
    /// statement_descriptor_suffix, description. It is read at the start.
    #[arg(
        id = "provider-shows",
        long = "provider-shows",
        env = "HOLDFAST_PROVIDER_SHOWS",
        value_name = "FILE",
        value_parser = ProviderShows::read,
        global = true
    )]
    pub shows: Option<ProviderShows>,
    /// Kinds of payment methods that a payment may be made by, by the provider's names, separated by commas: card, klarna, sepa_debit
    /// and so on.
    #[arg(
        id = "provider-methods",
        long = "provider-methods",
        env = "HOLDFAST_PROVIDER_METHODS",
        value_delimiter = ',',
        default_value = "card",
        global = true
    )]
    pub methods: Vec<String>,
    /// Have the provider send receipts: it gets the address in the user's profile with each payment.
    #[arg(
        id = "provider-receipts",
        long = "provider-receipts",
        env = "HOLDFAST_PROVIDER_RECEIPTS",
        global = true
    )]
    pub receipts: bool,
}

/// The mode of an account. What belongs to one is never seen by the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProviderMode {
    Test,
    Live,
}

impl ProviderMode {
    /// The mode that a key tells by its beginning, as Stripe's do.
    fn of_key(key: &str) -> Option<Self> {
        let begins = |starts: [&str; 2]| starts.iter().any(|start| key.starts_with(start));
        match key {
            _ if begins(["sk_test_", "rk_test_"]) => Some(Self::Test),
            _ if begins(["sk_live_", "rk_live_"]) => Some(Self::Live),
            _ => None,
        }
    }

    /// The mode of an object or an event, as Stripe marks them.
    pub fn of_livemode(livemode: bool) -> Self {
        if livemode { Self::Live } else { Self::Test }
    }

    /// True if both are known and are not the same.
    pub fn differ(one: Option<Self>, other: Option<Self>) -> bool {
        matches!((one, other), (Some(one), Some(other)) if one != other)
    }
}

impl fmt::Display for ProviderMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Test => "test mode",
            Self::Live => "live mode",
        })
    }
}

impl Provider {
    /// The key, which may be replaced in its file by another of the same mode; none without one.
    pub fn replaceable_key(&self) -> Option<ReplaceableSecret> {
        let (key, mode) = (self.key.clone()?, self.known_mode());
        let fits = move |key: &str| is_a_word(key) && !ProviderMode::differ(mode, ProviderMode::of_key(key));
        Some(ReplaceableSecret::new(key, self.key_file.clone(), fits))
    }

    /// The mode of the account, if the setting or the key tells it.
    pub fn known_mode(&self) -> Option<ProviderMode> {
        self.mode.or_else(|| self.mode_of_key())
    }

    fn mode_of_key(&self) -> Option<ProviderMode> {
        ProviderMode::of_key(self.key.as_ref()?.expose_secret())
    }

    /// Most calls of each kind in a second.
    pub fn rate(&self) -> u32 {
        let by_mode = match self.known_mode() {
            Some(ProviderMode::Live) => 100,
            _ => 25,
        };
        self.calls_per_second.unwrap_or(by_mode)
    }

    pub(super) fn read_secrets(&mut self, secrets: &mut Secrets) {
        secrets.read("provider-key", &mut self.key, self.key_file.as_deref());
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        checks.require(
            (self.url.as_ref()).is_none_or(|url| {
                ["http", "https"].contains(&url.scheme())
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.query().is_none()
            }),
            "provider-url",
            "give https://host, without user, password and query: the secret is --provider-key",
        );
        checks.secure(
            Wire::Provider,
            self.url.as_ref().is_none_or(is_closed),
            "provider-url",
            "give https://host: the key goes over this wire",
        );
        checks.require(
            self.url.is_some() == self.key.is_some(),
            "provider-key",
            "give it together with --provider-url (HOLDFAST_PROVIDER_URL), or neither",
        );
        checks.require(
            (self.return_url.as_ref()).is_none_or(|url| {
                ["http", "https"].contains(&url.scheme()) && url.username().is_empty() && url.password().is_none()
            }),
            "provider-return-url",
            "give https://host/path of the shop's page, without user and password",
        );
        checks.require(
            (self.key.as_ref()).is_none_or(|key| is_a_word(key.expose_secret())),
            "provider-key",
            "give the key alone, without spaces or line ends",
        );
        checks.require(
            (Duration::from_millis(100)..=Duration::from_secs(120)).contains(&self.timeout),
            "provider-timeout",
            "give 100ms to 2m",
        );
        checks.require(
            !ProviderMode::differ(self.mode, self.mode_of_key()),
            "provider-mode",
            "give the mode that --provider-key tells by its beginning, or leave it out",
        );
        let is_method = |name: &String| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
                && !PAID_SOME_DAY.contains(&name.as_str())
        };
        checks.require(
            self.methods.iter().all(is_method),
            "provider-methods",
            "give names such as card,klarna,sepa_debit; none by which the customer pays some day, as by multibanco: no hold lasts as long",
        );
        checks.require(
            (1..=MOST_CALLS).contains(&self.rate()),
            "provider-calls-per-second",
            "give 1 to 100000",
        );
    }
}
