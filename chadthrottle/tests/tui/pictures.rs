//! The pictures of the README: what the screens draw, from the recorded scene. `cargo xtask pictures` writes them.

use std::{fs, path::PathBuf};

use chadthrottle::tui::theme::ThemeName;

use crate::{
    scene::Scene,
    stage::Stage,
    svg::{self, DARK, LIGHT},
};

/// Set to 1: the pictures are written instead of compared.
const WRITE: &str = "CHADT_WRITE_PICTURES";

/// A picture: its file, what it shows, how large, and the keys to it.
struct Picture {
    file: &'static str,
    title: &'static str,
    size: (u16, u16),
    theme: ThemeName,
    keys: &'static str,
}

const PICTURES: &[Picture] = &[
    Picture {
        file: "processes",
        title: "Every process with its rates, two of them limited",
        size: (112, 26),
        theme: ThemeName::Default,
        keys: "",
    },
    Picture {
        file: "limit",
        title: "A limit on the upload of restic, as it is typed",
        size: (96, 22),
        theme: ThemeName::Default,
        keys: "t\t2M",
    },
    Picture {
        file: "detail",
        title: "A download and the limit that it was given",
        size: (112, 32),
        theme: ThemeName::Default,
        keys: "jj\n",
    },
    Picture {
        file: "units",
        title: "Processes by unit and container, in the light theme",
        size: (112, 24),
        theme: ThemeName::Light,
        keys: "vvl",
    },
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/pictures")
}

fn drawn(picture: &Picture) -> String {
    let mut scene = Scene::default();
    // It is there to try what names can do to a table.
    scene.actors.retain(|actor| actor.name.is_ascii());
    let (width, height) = picture.size;
    let mut stage = Stage::new(width, height, &scene);
    stage.app.theme = picture.theme;
    stage.press(picture.keys);
    let ground = if picture.theme == ThemeName::Light { LIGHT } else { DARK };
    svg::picture(stage.terminal().backend().buffer(), &ground, picture.title)
}

#[test]
fn pictures_are_up_to_date() {
    let writes = std::env::var_os(WRITE).is_some_and(|value| value == "1");
    let folder = folder();
    for picture in PICTURES {
        let path = folder.join(picture.file).with_extension("svg");
        let now = drawn(picture);
        if writes {
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(&path, now).expect("a file");
        } else {
            let committed = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == now,
                "{} is not what the screens draw now; if that is wanted, run `cargo xtask pictures`",
                path.display()
            );
        }
    }
    // What the README shows is there, and what is there is shown.
    let readme = folder.join("../../README.md");
    let readme = fs::read_to_string(readme).expect("the README");
    for entry in fs::read_dir(&folder).expect("the pictures") {
        let name = entry.expect("a file").file_name();
        let name = name.to_string_lossy().into_owned();
        let is_known = PICTURES.iter().any(|picture| format!("{}.svg", picture.file) == name);
        assert!(is_known && readme.contains(&format!("docs/pictures/{name}")), "{name} is in no use");
    }
}
