package mailimport

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// fromDate finds the date in a line "From address Thu Jan  1 00:00:00 1970",
// with day and month in either order, seconds or not, and a zone before or
// behind the year. Without a numeric zone it is UTC.
func fromDate(line []byte) (time.Time, bool) {
	if !bytes.HasPrefix(line, fromSpace) || len(line) > 1000 {
		return time.Time{}, false
	}
	f := strings.Fields(string(line))
	for i := 1; i+4 < len(f); i++ {
		if !abbreviated(f[i], "SunMonTueWedThuFriSat") {
			continue
		}
		if t, ok := dateFields(f[i+1:]); ok {
			return t, true
		}
	}
	return time.Time{}, false
}

const months = "JanFebMarAprMayJunJulAugSepOctNovDec"

// abbreviated says whether s, but for a comma behind it, is one of the names of
// three letters.
func abbreviated(s, names string) bool {
	s = strings.TrimSuffix(s, ",")
	return len(s) == 3 && strings.Index(names, s)%3 == 0
}

// dateFields understands what follows the day of the week: at least 4 fields.
func dateFields(f []string) (time.Time, bool) {
	month, day := f[0], f[1]
	if !abbreviated(month, months) {
		month, day = day, month
	}
	d, err := strconv.Atoi(day)
	if !abbreviated(month, months) || err != nil || d < 1 || d > 31 {
		return time.Time{}, false
	}
	var clock time.Time
	zone, year := time.UTC, 0
	for _, s := range f[2:min(len(f), 6)] {
		switch {
		case strings.Contains(s, ":") && clock.IsZero():
			if clock, err = time.Parse("15:04:05", s); err != nil {
				clock, err = time.Parse("15:04", s)
			}
			if err != nil {
				return time.Time{}, false
			}
		case len(s) == 4 && year == 0:
			if n, err := strconv.Atoi(s); err == nil && n >= 1000 {
				year = n
			}
		case len(s) == 5 && (s[0] == '+' || s[0] == '-'):
			if t, err := time.Parse("-0700", s); err == nil {
				_, seconds := t.Zone()
				zone = time.FixedZone("", seconds)
			}
		}
	}
	if clock.IsZero() || year == 0 {
		return time.Time{}, false
	}
	m := time.Month(strings.Index(months, month)/3 + 1)
	return time.Date(year, m, d, clock.Hour(), clock.Minute(), clock.Second(), 0, zone), true
}
