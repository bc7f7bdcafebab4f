//! The templates that come with Holdfast, a start for those of a shop.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

macro_rules! files {
    ($($name:literal)+) => {
        const FILES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../templates/", $name)))),+];
    };
}

files! {
    "seller.json" "seller.html" "seller.txt" "seats.html" "seats.txt"
    "words.en.json" "completed.en.subject" "completed.en.txt" "completed.en.html"
    "failed.en.subject" "failed.en.txt" "failed.en.html"
    "refunded.en.subject" "refunded.en.txt" "refunded.en.html"
    "words.de.json" "completed.de.subject" "completed.de.txt" "completed.de.html"
    "failed.de.subject" "failed.de.txt" "failed.de.html"
    "refunded.de.subject" "refunded.de.txt" "refunded.de.html"
}

/// The files by name.
pub(super) fn files() -> BTreeMap<String, String> {
    let files = FILES
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    files.collect()
}

/// Writes the files to a folder, which is made where it is missing; a file of that name is left alone, and ends the writing. Returns
/// how many there are.
///
/// # Errors
/// The name of the file that cannot be written, and why.
pub fn write_to(folder: &Path) -> Result<usize, (String, io::Error)> {
    fs::create_dir_all(folder).map_err(|error| (folder.display().to_string(), error))?;
    for (name, text) in FILES {
        let path = folder.join(name);
        let made = OpenOptions::new().write(true).create_new(true).open(&path);
        let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| (path.display().to_string(), error))?;
    }
    Ok(FILES.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_shipped() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates");
        let in_folder: BTreeMap<_, _> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect();
        assert_eq!(in_folder, files());
    }
}
