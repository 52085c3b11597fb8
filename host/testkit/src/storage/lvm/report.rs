//! `lvs` and `vgs`: which rows, which fields, and how they are laid out.

use super::options::{Line, Output, column_size};
use super::rows::{Row, Value};
use super::state::{Id, State};

/// Where numbers stand in their column.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}
use Side::{Left, Right};

/// Name, heading, least width and side of every field the model has.
const FIELDS: &[(&str, &str, usize, Side)] = &[
    ("vg_name", "VG", 2, Left),
    ("vg_uuid", "VG UUID", 38, Left),
    ("vg_attr", "Attr", 5, Left),
    ("vg_size", "VSize", 5, Right),
    ("vg_free", "VFree", 5, Right),
    ("vg_extent_size", "Ext", 3, Right),
    ("lv_count", "#LV", 3, Right),
    ("snap_count", "#SN", 3, Right),
    ("lv_name", "LV", 4, Left),
    ("lv_full_name", "LV", 7, Left),
    ("lv_uuid", "LV UUID", 38, Left),
    ("lv_size", "LSize", 5, Right),
    ("lv_attr", "Attr", 10, Left),
    ("lv_layout", "Layout", 10, Left),
    ("lv_role", "Role", 10, Left),
    ("lv_permissions", "LPerms", 10, Left),
    ("lv_time", "CTime", 26, Left),
    ("lv_tags", "LV Tags", 7, Left),
    ("lv_active", "Active", 6, Left),
    ("lv_device_open", "DevOpen", 10, Left),
    ("lv_skip_activation", "SkipAct", 15, Left),
    ("lv_autoactivation", "AutoAct", 15, Left),
    ("lv_health_status", "Health", 15, Left),
    ("lv_when_full", "WhenFull", 15, Left),
    ("lv_check_needed", "CheckNeeded", 15, Left),
    ("lv_snapshot_invalid", "SnapInvalid", 15, Left),
    ("lv_merge_failed", "MergeFailed", 15, Left),
    ("lv_merging", "Merging", 10, Left),
    ("origin", "Origin", 6, Left),
    ("origin_uuid", "Origin UUID", 38, Left),
    ("pool_lv", "Pool", 4, Left),
    ("data_percent", "Data%", 6, Left),
    ("metadata_percent", "Meta%", 6, Left),
    ("snap_percent", "Snap%", 6, Left),
    ("copy_percent", "Cpy%Sync", 8, Left),
    ("move_pv", "Move", 4, Left),
    ("mirror_log", "Log", 3, Left),
    ("convert_lv", "Convert", 7, Left),
    ("thin_count", "#Thins", 6, Right),
    ("thin_id", "ThId", 4, Right),
    ("transaction_id", "TransId", 4, Right),
    ("chunk_size", "Chunk", 5, Right),
    ("lv_metadata_size", "MSize", 5, Right),
    ("discards", "Discards", 8, Left),
    ("zero", "Zero", 7, Left),
    ("seg_monitor", "Monitor", 7, Left),
    ("lv_read_ahead", "Rahead", 6, Left),
    ("lv_minor", "Min", 3, Right),
];

const LVS_DEFAULT: &str = "lv_name,vg_name,lv_attr,lv_size,pool_lv,origin,data_percent,\
                           metadata_percent,move_pv,mirror_log,copy_percent,convert_lv";

impl State {
    pub(super) fn report(&mut self, line: &Line) -> Output {
        let output = Output::new(line);
        let json = match line.value("reportformat") {
            None => false,
            Some("json") => true,
            Some(other) => return output.unreadable("reportformat", other),
        };
        let vgs = line.program == "vgs";
        let fields = fields_of(line, vgs);
        let mut output = output;
        let mut rows =
            if vgs { self.groups_of(line, &mut output) } else { self.rows_of(line, &mut output) };
        rows.sort_by_key(|row| (self.row_group(row), self.row_name(row)));
        rows.retain(|row| self.row_selected(line, row));
        let table: Vec<Vec<String>> = rows
            .iter()
            .map(|row| fields.iter().map(|field| self.shown(line, row, field)).collect())
            .collect();
        let text = if json {
            laid_out_as_json(if vgs { "vg" } else { "lv" }, &fields, &table)
        } else {
            laid_out_in_columns(line, &fields, &table)
        };
        output.out += &text;
        output
    }

    fn groups_of(&self, line: &Line, output: &mut Output) -> Vec<Row> {
        let mut rows = Vec::new();
        for group in &line.positional {
            if self.groups.contains_key(group) {
                rows.push(Row::Group(group.clone()));
            } else {
                *output = std::mem::take(output).no_group(group);
            }
        }
        if line.positional.is_empty() {
            rows.extend(self.groups.keys().cloned().map(Row::Group));
        }
        rows
    }

    fn rows_of(&self, line: &Line, output: &mut Output) -> Vec<Row> {
        let mut rows = Vec::new();
        for place in &line.positional {
            if let Some(tag) = place.strip_prefix('@') {
                let tagged = self.lvs.iter().filter(|(_, lv)| lv.tags.contains(tag));
                rows.extend(tagged.map(|(&id, _)| Row::Lv(id)));
                continue;
            }
            let place = place.strip_prefix("/dev/").unwrap_or(place);
            match place.split_once('/') {
                None if self.groups.contains_key(place) => {
                    rows.extend(self.rows_of_group(line, place));
                }
                None => *output = std::mem::take(output).no_group(place),
                Some((group, _)) if !self.groups.contains_key(group) => {
                    *output = std::mem::take(output).no_group(group);
                }
                Some((group, name)) => match self.find(group, name) {
                    Some(id) => rows.push(Row::Lv(id)),
                    None => {
                        output.fail(&format!("Failed to find logical volume \"{place}\""));
                    }
                },
            }
        }
        if line.positional.is_empty() {
            for group in self.groups.keys() {
                rows.extend(self.rows_of_group(line, group));
            }
        }
        rows
    }

    fn rows_of_group(&self, line: &Line, group: &str) -> Vec<Row> {
        let all = line.has("all");
        let mut rows = Vec::new();
        for (&id, lv) in self.lvs.iter().filter(|(_, lv)| lv.group == group) {
            if all || !lv.hidden() {
                rows.push(Row::Lv(id));
            }
            if all && lv.pool().is_some() {
                rows.extend([Row::PoolData(id), Row::PoolMetadata(id)]);
            }
        }
        if all && self.spare_bytes(group) > 0 {
            rows.push(Row::Spare(group.to_owned()));
        }
        rows
    }

    fn shown(&self, line: &Line, row: &Row, field: &str) -> String {
        let epoch = line.config().iter().any(|(key, _)| key == "report/time_format");
        match self.field(row, field, epoch) {
            None => line.unknown(&format!("the field {field} here")),
            Some(Value::Text(text)) => text,
            Some(Value::Size(bytes)) => match (line.value("units"), line.has("nosuffix")) {
                (None, false) => column_size(bytes),
                (Some("b"), true) => bytes.to_string(),
                (Some("b"), false) => format!("{bytes}B"),
                _ => line.unknown("the units"),
            },
        }
    }

    pub(super) fn selected(&self, line: &Line, id: Id) -> bool {
        self.row_selected(line, &Row::Lv(id))
    }

    /// `--select`: comparisons joined by `&&`.
    fn row_selected(&self, line: &Line, row: &Row) -> bool {
        let Some(text) = line.value("select") else { return true };
        text.split("&&").all(|term| {
            let term = term.trim();
            let (field, wanted, equal) = match term.split_once("!=") {
                Some((field, wanted)) => (field, wanted, false),
                None => match term.split_once('=') {
                    Some((field, wanted)) => (field, wanted, true),
                    None => line.unknown("the selection"),
                },
            };
            if !["lv_uuid", "lv_name", "lv_device_open"].contains(&field) {
                line.unknown(&format!("a selection by {field}"));
            }
            let wanted = wanted.trim_matches('"');
            if wanted.is_empty() || wanted.contains(['~', '{', '[', '(', '|', ',', ' ']) {
                line.unknown("the selection's value");
            }
            // A selection sees names without brackets.
            let value = match field {
                "lv_name" => self.row_name(row),
                _ => self.shown(line, row, field),
            };
            (value == wanted) == equal
        })
    }
}

/// The fields asked for.
fn fields_of(line: &Line, vgs: bool) -> Vec<String> {
    let default = if vgs { None } else { Some(LVS_DEFAULT) };
    let list = match line.value("options") {
        None => default.unwrap_or_else(|| line.unknown("vgs without -o")).to_owned(),
        Some(more) => match more.strip_prefix('+') {
            Some(more) => {
                format!("{},{more}", default.unwrap_or_else(|| line.unknown("vgs -o+")))
            }
            None => more.to_owned(),
        },
    };
    let fields: Vec<String> = list.split(',').map(str::to_owned).collect();
    if let Some(field) = fields.iter().find(|f| FIELDS.iter().all(|(name, ..)| name != f)) {
        line.unknown(&format!("the field {field}"));
    }
    fields
}

fn laid_out_as_json(what: &str, fields: &[String], table: &[Vec<String>]) -> String {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let rows: Vec<String> = table
        .iter()
        .map(|row| {
            let pairs = fields.iter().zip(row);
            let pairs = pairs.map(|(field, value)| format!("\"{field}\":\"{}\"", escaped(value)));
            format!("{:18}{{{}}}", "", pairs.collect::<Vec<_>>().join(", "))
        })
        .collect();
    let rows = if rows.is_empty() { String::new() } else { rows.join(",\n") + "\n" };
    format!(
        "  {{\n      \"report\": [\n          {{\n              \"{what}\": [\n{rows}              ]\n          }}\n      ]\n  }}\n"
    )
}

fn laid_out_in_columns(line: &Line, fields: &[String], table: &[Vec<String>]) -> String {
    let known = |field: &String| FIELDS.iter().find(|(name, ..)| name == field).expect("checked");
    let kinds: Vec<_> = fields.iter().map(known).collect();
    let mut lines: Vec<Vec<String>> = Vec::new();
    // Nothing to show: no headings either.
    if !line.has("noheadings") && !table.is_empty() {
        lines.push(kinds.iter().map(|(_, heading, ..)| (*heading).to_owned()).collect());
    }
    lines.extend(table.iter().cloned());
    if let Some(separator) = line.value("separator") {
        return lines.iter().map(|l| format!("  {}\n", l.join(separator))).collect();
    }
    let widths: Vec<usize> = kinds
        .iter()
        .enumerate()
        .map(|(i, (_, _, least, _))| {
            lines.iter().map(|l| l[i].len()).max().unwrap_or(0).max(*least)
        })
        .collect();
    let heading = !line.has("noheadings");
    let mut text = String::new();
    for (n, row) in lines.iter().enumerate() {
        let cells = row.iter().zip(&kinds).zip(&widths).map(|((cell, (.., side)), &width)| {
            if *side == Right && !(heading && n == 0) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        text += &format!("  {}\n", cells.collect::<Vec<_>>().join(" "));
    }
    text
}

/// Hundredths of a percent. As LVM rounds them: what is not nothing does not look like it, and
/// what is not all neither (`dm_percent_to_round_float`).
pub(super) fn percent(used: u64, all: u64) -> u64 {
    match (used * 10_000 + all / 2) / all {
        0 if used > 0 => 1,
        10_000.. if used < all => 9_999,
        n => n,
    }
}

pub(super) fn hundredths(n: u64) -> String {
    format!("{}.{:02}", n / 100, n % 100)
}

/// A share in percent, with two digits after the point.
pub(super) fn fraction(used: u64, all: u64) -> String {
    hundredths(percent(used, all))
}

/// A moment as reports have it, in UTC.
pub(super) fn time(seconds: u64, epoch: bool) -> String {
    if epoch {
        return seconds.to_string();
    }
    // Days to a date: Howard Hinnant's `civil_from_days`, for years after 1970.
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} +0000",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}
