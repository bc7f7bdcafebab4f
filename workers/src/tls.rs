//! What an operator has to do about a TLS handshake that failed, for clients that trust what the system trusts (its certificate store,
//! or the file that `SSL_CERT_FILE` names).

use std::error::Error;

use rustls::CertificateError;

/// What is wrong and how to mend it, to be printed behind an error; nothing if TLS is not why.
pub fn mend(error: &(dyn Error + 'static)) -> &'static str {
    cause(error).map_or("", mend_cause)
}

/// The error of TLS behind another one. It hides in errors of the connection, which do not name it as their source.
fn cause<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(hidden) => cause(hidden),
        None => error.source().and_then(cause),
    }
}

fn mend_cause(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                ": its certificate is not valid at this time; renew it, or mend this machine's clock"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                ": its certificate is for another name; give the address with the name in the certificate"
            }
            _ => {
                ": its certificate is not trusted here; give the authority that signed it in the file that SSL_CERT_FILE names"
            }
        },
        rustls::Error::InvalidMessage(_) => ": it does not speak TLS; give http:// or smtp://, or another port",
        _ => ": it does not agree on TLS",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_tls_is_found_however_deep_it_hides() {
        let expired = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let hidden = std::io::Error::other(std::io::Error::new(std::io::ErrorKind::InvalidData, expired));
        let found = mend(&hidden);
        assert!(found.contains("not valid at this time"), "{found:?}");
        assert_eq!(mend(&std::io::Error::from(std::io::ErrorKind::ConnectionRefused)), "");
    }
}
