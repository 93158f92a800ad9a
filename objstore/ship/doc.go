// Package ship brings the state of a store of one host to an outside pool, all the
// time, so that a host that burns takes no mail with it: names, attributes, the
// wrapped keys of accounts and the small bodies, all encrypted. Large bodies of
// encrypted accounts lie in the pool anyway.
//
// Outside lie, below meta/ in the pool (format.go, names.go):
//
//	checkpoints   pictures of the whole state, in parts of about 8 MiB
//	runs          what was logged since, an object for each second with changes
//	a manifest    which checkpoint and which runs make the state, and from where
//	owner marks   whose turn it is: each rebuild makes the next epoch
//
// The state is a checkpoint and all deltas of the runs in order. A picture is taken
// while changes go on; it counts only together with everything that was logged
// until it was whole, so the manifest that names it is written when that is outside.
// What no manifest names, and no object of its open run links to, is not there. So
// a crash between any two writes leaves the state of a moment before.
//
// Objects are encrypted with a key of their own, made of the shipping key, the
// object's name and a salt. The manifest names a checkpoint's parts with their
// salts, and every object of a run the salt of the one before: another object, or
// an earlier one of the same name, does not fit. A provider who puts everything
// back to a state of before cannot be found out by an empty host, but for objects
// of later runs that he leaves.
//
// A host never writes under a name that another epoch, or another run of the
// program, could write to: objects that come late do no harm. Before freed chunks are
// removed from the pool, and before a change is said to be outside (Wait), what was
// logged must be there, and then nobody may have made the next epoch. A rebuild makes its
// epoch first and looks for objects afterwards; so each of the two sees the other.
//
// A Shipper has two goroutines: one writes runs and manifests, one the parts of a
// checkpoint. Shipping never holds up changes but those that Wait.
package ship
