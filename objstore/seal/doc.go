// Package seal encrypts file bodies on the mail host: it is an objstore.Store
// over another one, below which nobody can read mail. OSDs and pools, outside
// ones above all, see ciphertext and know no key. Names, attributes and sizes
// are not encrypted: they stay on the store's own OSDs.
//
// # Keys
//
// Master keys lie in a file on the mail hosts (MasterKeys). A volume, which is
// an account, has a key of its own: 32 random bytes, wrapped by a master key
// (AES-256-GCM, the volume's id as associated data), in the extended attribute
// KeyAttr of the volume's top directory. It is put there before the account has
// a name, so no host ever takes an encrypted volume for a plain one: a volume
// has all bodies sealed or none. Rotating the master key wraps the volumes' keys
// anew and leaves bodies alone; destroying a volume's key leaves a note in its
// place, and nothing that can open a body.
//
// # Bodies
//
// A body is cut into frames of 64 KiB, so that a read opens only what it needs.
// Each is compressed with zstd where that saves an eighth, and sealed with
// AES-256-GCM. Nonces cannot repeat, by this: every body gets a key of its own,
// HMAC-SHA256 under the volume's key of the chunk's id and 16 random bytes that
// are stored with it, and the frames of a body are numbered by the nonce. Two
// bodies share a key only if they share id and salt. Ids are unique as long as
// the monitors never hand out a session twice; should they, restored from a
// backup, the salts still differ but with probability 2^-128 a pair. So there is
// no bound on how much one key may seal, and nothing to count.
//
// The id (volume, inode, place in the file, version) being part of the key, and
// the length associated data of every frame, a body opens only where it was put,
// and whole: objects that were swapped, cut, or rolled back to what another
// version was are refused as corrupt.
//
// Tiny bodies that an inode's record would hold are sealed as bodies of their own.
//
// # Concurrency
//
// Every method may be called from any goroutine. The Store keeps volumes' keys
// and bodies' heads in memory; pushes of what other hosts changed drop keys
// (Watcher).
package seal
