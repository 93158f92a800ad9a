package bench

// Row is one kind of work that is measured.
type Row struct {
	Name string // as Options.Rows has it
	Does string // one line for the manual

	wants   wants
	bytes   bool // measured in bytes: the report shows MB/s
	passes  func(workers int) int
	measure func(w *worker) error
}

// wants is what a row needs prepared, outside the measured time.
type wants struct {
	room   bool   // room for half a mailbox of new messages
	full   bool   // a full mailbox
	in     string // all messages in this directory of the Maildir
	cold   bool   // the kernel's caches dropped
	warm   bool   // the same work done once before
	single bool   // no copies of the messages in other folders
	files  bool   // attachments written
}

// coldOpens is how many mailboxes are opened cold at least, in a round.
const coldOpens = 8

// Rows are all rows in the order a round takes them: a message's life.
func Rows() []Row {
	once := func(int) int { return 1 }
	return []Row{
		{"deliver-link", "create in tmp, write, fsync, close, link to new, unlink (Postfix)", wants{room: true}, false, once, (*worker).deliverLink},
		{"deliver-rename", "create in tmp, write, fsync, close, rename to new, fdatasync of new, append to uidlist with fdatasync (Dovecot LMTP)", wants{room: true}, false, once, (*worker).deliverRename},
		{"open-cold", "list new and cur, lstat every message, caches dropped", wants{full: true, cold: true}, false, func(n int) int { return (coldOpens + n - 1) / n }, (*worker).openOnce},
		{"open-warm", "the same with warm caches", wants{full: true, warm: true}, false, once, (*worker).openMany},
		{"new-to-cur", "rename from new to cur with flags :2,S", wants{full: true, in: "new"}, false, once, (*worker).newToCur},
		{"read-cold", "open, read by 8 KiB, close; caches dropped", wants{full: true, in: "cur", cold: true}, false, once, (*worker).readAll},
		{"read-warm", "the same with warm caches", wants{full: true, in: "cur", warm: true}, false, once, (*worker).readAll},
		{"flag", "rename inside cur", wants{full: true, in: "cur"}, false, once, (*worker).flag},
		{"copy", "hard link into another folder", wants{full: true, in: "cur", single: true}, false, once, (*worker).copyAll},
		{"index-append", "fcntl write lock, append 100 bytes, fdatasync every 8th time, unlock", wants{}, false, once, (*worker).indexAppend},
		{"dotlock", "create exclusively, lstat, unlink", wants{}, false, once, (*worker).dotlock},
		{"attach-write", "write a large file by 256 KiB, fsync", wants{}, true, once, (*worker).attachWrite},
		{"attach-read", "read it back, caches dropped", wants{files: true, cold: true}, true, once, (*worker).attachRead},
		{"expunge", "unlink", wants{full: true, in: "cur", single: true}, false, once, (*worker).expunge},
	}
}

// RowNames are the names of all rows.
func RowNames() []string {
	var names []string
	for _, r := range Rows() {
		names = append(names, r.Name)
	}
	return names
}
