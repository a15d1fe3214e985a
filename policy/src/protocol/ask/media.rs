//! Media in a message part: is it in the request (`data:`), or would vLLM fetch it (B4)?
//!
//! Anything under a key that ends in `url` must be a `data:` URL; which other schemes a version of vLLM knows doesn't matter then.
//! Tensors (`…_embeds`) are refused as `prompt_embeds` is. Keys are known by their names, not by the part's `type`: vLLM goes by
//! the name if the type is missing.

use super::Grants;
use super::prompt::Place;
use crate::protocol::fault::{Fault, FaultKind};
use crate::protocol::skim::{Cursor, Kind, Text};

/// A list of frames, in an object, in a list: nothing holds media deeper.
const MEDIA_DEPTH_LIMIT: u32 = 4;

/// Longest key that could be one of ours, in bytes.
const KEY_LIMIT_BYTES: usize = 64;

/// What was found so far, and what is allowed.
pub(super) struct Media {
    /// Whether there was any.
    pub(super) seen: bool,
    /// Its size in the body.
    pub(super) bytes: u64,
    remote: bool,
    embeds: bool,
}

/// A key of a part under which media stand, by what its strings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MediaKey {
    /// A URL. The place is that of [`MediaKey::place`]; names that only end like one have none.
    Url(Option<u32>),
    /// The data itself, or, in some clients, a URL.
    Data(u32),
    /// A tensor.
    Embeds(Option<u32>),
    /// Anthropic's object; as a string it is a citation's source and no medium.
    Source,
}

impl MediaKey {
    pub(super) fn of(key: &Text<'_>) -> Option<MediaKey> {
        let name = key.decoded(KEY_LIMIT_BYTES)?;
        Some(match name.as_ref() {
            "image_url" => MediaKey::Url(Some(1)),
            "video_url" => MediaKey::Url(Some(2)),
            "audio_url" => MediaKey::Url(Some(3)),
            "file_url" => MediaKey::Url(Some(4)),
            "url" => MediaKey::Url(Some(5)),
            "image" => MediaKey::Data(6),
            "video" => MediaKey::Data(7),
            "audio" => MediaKey::Data(8),
            "file" => MediaKey::Data(9),
            "input_image" => MediaKey::Data(10),
            "input_video" => MediaKey::Data(11),
            "input_audio" => MediaKey::Data(12),
            "image_embeds" => MediaKey::Embeds(Some(13)),
            "audio_embeds" => MediaKey::Embeds(Some(14)),
            "prompt_embeds" => MediaKey::Embeds(Some(15)),
            "source" => MediaKey::Source,
            other if other.ends_with("url") => MediaKey::Url(None),
            other if other.ends_with("_embeds") => MediaKey::Embeds(None),
            _ => return None,
        })
    }

    /// Its place among a part's judged keys. Names of versions to come have none: each is judged by itself, so that a repetition
    /// hides nothing.
    pub(super) fn place(self) -> Option<u32> {
        match self {
            MediaKey::Url(place) | MediaKey::Embeds(place) => place,
            MediaKey::Data(place) => Some(place),
            MediaKey::Source => Some(0),
        }
    }
}

impl Media {
    pub(super) fn new(grants: &Grants) -> Media {
        Media {
            seen: false,
            bytes: 0,
            remote: grants.remote_media,
            embeds: grants.prompt_embeds,
        }
    }

    /// Reads the value of a media key of a part.
    pub(super) fn read(
        &mut self,
        cursor: &mut Cursor<'_>,
        media: MediaKey,
        key: &Text<'_>,
        place: Place<'_>,
    ) -> Result<(), Fault> {
        let start = cursor.offset();
        let found = match cursor.kind()? {
            Kind::Null => false,
            Kind::String => media != MediaKey::Source,
            _ => true,
        };
        self.value(cursor, media, key, place, 0)?;
        if found {
            self.seen = true;
            self.bytes += (cursor.offset() - start) as u64;
        }
        Ok(())
    }

    fn value(
        &self,
        cursor: &mut Cursor<'_>,
        media: MediaKey,
        key: &Text<'_>,
        place: Place<'_>,
        depth: u32,
    ) -> Result<(), Fault> {
        let kind = cursor.kind()?;
        if matches!(media, MediaKey::Embeds(_)) && kind != Kind::Null && !self.embeds {
            return Err(refused(key, place, "Embeddings are not permitted", "prompt_embeds"));
        }
        if depth > MEDIA_DEPTH_LIMIT {
            let message = format!(
                "Media are nested deeper than {MEDIA_DEPTH_LIMIT} levels at byte {}.",
                cursor.offset()
            );
            return Err(Fault::bad_request(place.path(), message));
        }
        match kind {
            Kind::String => {
                let text = cursor.string()?;
                let remote = match media {
                    MediaKey::Url(_) => !is_data_url(&text),
                    MediaKey::Data(_) => has_scheme(&text) && !is_data_url(&text),
                    MediaKey::Embeds(_) | MediaKey::Source => false,
                };
                match remote && !self.remote {
                    true => Err(refused(
                        key,
                        place,
                        "Only data: URLs are permitted here",
                        "remote_media",
                    )),
                    false => Ok(()),
                }
            }
            Kind::Array => {
                cursor.items(|cursor, _| self.value(cursor, media, key, place, depth + 1))?;
                Ok(())
            }
            Kind::Object => {
                let mut seen = super::Seen::default();
                cursor.members(|cursor, inner| -> Result<(), Fault> {
                    let Some(media) = MediaKey::of(&inner) else {
                        return Ok(());
                    };
                    if let Some(index) = media.place() {
                        seen.once(index, &inner, || place.path())?;
                    }
                    self.value(cursor, media, &inner, place, depth + 1)
                })?;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn refused(key: &Text<'_>, place: Place<'_>, what: &str, grant: &str) -> Fault {
    let name: String = key.chars().take(KEY_LIMIT_BYTES).collect();
    let message = format!(
        "{what} (`{name}` at byte {}). This key lacks the permission {grant}.",
        key.span().start
    );
    Fault::new(FaultKind::FieldNotPermitted, message).with_param(format!("{}.{name}", place.path()))
}

/// Schemes have no case.
fn is_data_url(text: &Text<'_>) -> bool {
    text.chars().take(5).map(|c| c.to_ascii_lowercase()).eq("data:".chars())
}

/// Base64 has no colon; `scheme:` in front of anything else is a URL.
fn has_scheme(text: &Text<'_>) -> bool {
    text.chars()
        .skip_while(|c| c.is_whitespace())
        .take(24)
        .any(|c| c == ':')
}
