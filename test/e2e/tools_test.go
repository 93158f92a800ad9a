package e2e

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// tool is a shell script that runs on the mount and on the local disk. Its
// working directory is the top of the mail; A and B are users of one domain, C
// of another, and A/Maildir holds 300 messages of the real mail. Whatever it
// prints must be the same in both places, so it prints only what must be.
type tool struct{ name, script string }

var tools = []tool{
	{"ls", `
ls; ls -A example.org; ls -A $A $A/Maildir; ls -l --time-style=+ $A/Maildir/cur | tail -n +2
ls -U $A/Maildir/cur | sort | md5sum; ls $A/Maildir/cur | wc -l`},
	{"find", `
find $A -type f | sort | md5sum; find $A -type d | sort; find $A -type f -size +8k | wc -l
find $A -name '*:2,S' -newermt 2000-01-01 | wc -l; find $A -type f -links 1 -printf '%m %u %g %s %y\n' | sort | md5sum
find $A/Maildir -maxdepth 1 -printf '%y %f\n' | sort; find . -xdev -type f | wc -l; find $A -empty -type d | sort`},
	{"grep -r", `grep -rlis 'subject: .*linux' $A | sort; grep -rc '^From:' $A/Maildir/cur | sort | md5sum; grep -r nobody-has-this . || echo none`},
	{"du", `du -s --apparent-size --exclude=. $A/Maildir/cur/* | sort -k2 | md5sum; du -b $A/Maildir/cur/* | awk '{s += $1} END {print s}'
big=$(mktemp $A/XXXX); head -c 1048576 /dev/urandom >$big; sync $big; k=$(du -k $big | cut -f1); [ $k -ge 1000 ] && [ $k -le 1200 ] && echo du is right || echo du says $k; rm $big`},
	{"cat head tail wc", `cat $A/Maildir/cur/* | md5sum; wc -c $A/Maildir/cur/* | tail -1; for f in $A/Maildir/cur/*; do tail -c 100 $f; done | md5sum`},
	{"cp -a", `
cp -a $A/Maildir $A/copy; diff -r $A/Maildir $A/copy; touch -d '2001-02-03 04:05:06.123456789' $A/copy/one; chmod 4751 $A/copy/one; ln -s one $A/copy/sym; ln $A/copy/one $A/copy/hard; mkfifo $A/copy/pipe; touch -h -d 2002-02-02 $A/copy/sym $A/copy/pipe
chown 5001:5002 $A/copy/hard; chmod 640 $A/copy/one; setfattr -n user.note -v abc $A/copy/one; cp -a $A/copy $A/copy2; cp -a $A/copy $B/copy
for d in $A/copy2 $B/copy; do (cd $d; stat -c '%n %F %a %u %g %h %s %y' one sym hard pipe; readlink sym; getfattr -n user.note one; [ one -ef hard ] && echo same); done; diff -r $A/copy/cur $B/copy/cur && echo equal`},
	{"mv within an account", `
mkdir $A/x $A/y; echo 1 >$A/x/f; i=$(stat -c %i $A/x/f); mv $A/x/f $A/y/g; [ $i = $(stat -c %i $A/y/g) ] && echo same inode; mv $A/x $A/y/z; find $A/y | sort
echo new >$A/y/h; mv -f $A/y/h $A/y/g; cat $A/y/g; mv -n $A/y/g $A/y/z; mv $A/y $A/y2; mv -T $A/y2 $A/y 2>&1; ! mv $A/y $A/y/z/in 2>/dev/null && echo refused; find $A/y | sort`},
	{"mv across accounts and domains", `
echo 1 >$A/f; chown 5001:5001 $A/f; chmod 640 $A/f; touch -d 2003-03-03 $A/f; mv $A/f $B/f; stat -c '%a %u %g %s %y' $B/f; mv $B/f $C/f; cat $C/f; ls $A $B $C
cp -a $A/Maildir $A/m; before=$(cd $A/m; find . -type f -exec md5sum {} + | sort | md5sum); mv $A/m $C/m; after=$(cd $C/m; find . -type f -exec md5sum {} + | sort | md5sum); [ "$before" = "$after" ] && echo moved whole; ls $A $C`},
	{"mv of users", `
mkdir -p example.org/u1/Maildir/cur example.net; echo mail >example.org/u1/Maildir/cur/1; chown -R 5000:5000 example.org/u1; mv example.org/u1 example.org/u2; cat example.org/u2/Maildir/cur/1; mv example.org/u2 example.net/u2; cat example.net/u2/Maildir/cur/1
stat -c '%a %u %g' example.net/u2/Maildir/cur/1; ls example.org example.net; mkdir gone.test; mv example.net/u2 gone.test/; mv gone.test renamed.test; cat renamed.test/u2/Maildir/cur/1; rm -r renamed.test; ls`},
	{"ln", `
echo 1 >$A/f; ln $A/f $A/g; ln -s f $A/s; ln -s /nowhere/at/all $A/dangling; stat -c '%n %h %s %F' $A/f $A/g; cat $A/s; readlink $A/dangling; echo 22 >>$A/g; cat $A/f; ln -sfn g $A/s; readlink $A/s
! ln $A/f $A/g 2>/dev/null && echo exists; rm $A/f; stat -c %h $A/g; cat $A/s; ! ln $A $A/dirlink 2>/dev/null && echo no directory links; long=$(printf '%4000s' | tr ' ' x); ln -s $long $A/longlink; readlink $A/longlink | md5sum`},
	{"names", `
cd $A; n=$(printf '%255s' | tr ' ' n); echo x >$n; cat $n; ! touch n$n 2>/dev/null && echo too long; touch 'a b' $'new\nline' $'\377\376' 'ä' '*' -- -dash; ls -b | LC_ALL=C sort; rm -- $n 'a b' $'new\nline' $'\377\376' 'ä' '*' -dash; ls`},
	{"tar", `
tar -C $A -cpf $B/t.tar --acls --xattrs --numeric-owner Maildir; mkdir $C/out; tar -C $C/out -xpf $B/t.tar --xattrs --numeric-owner; diff -r $A/Maildir $C/out/Maildir && echo equal
(cd $A/Maildir; find . -printf '%p %m %u %g %y %T@\n' | sort | md5sum); (cd $C/out/Maildir; find . -printf '%p %m %u %g %y %T@\n' | sort) | md5sum; tar -C $A -df $B/t.tar --numeric-owner && echo no difference; tar -cf - $A | tar -tf - | wc -l`},
	{"chmod chown", `
cd $A; touch f; for m in 0 7 70 700 4755 2755 1777 644; do chmod $m f; stat -c %a f; done; chown 5001:5002 f; stat -c '%u %g' f; chown :5000 f; chmod -R g+rX,o-rwx Maildir; find Maildir -perm /7 | wc -l
chmod 6755 f; chown 5000 f; stat -c %a f; mkdir d; chmod 2775 d; chown 5000:5001 d; chmod g+s d; mkdir d/sub; touch d/file; stat -c '%a %g' d/sub d/file; (umask 077; touch private; mkdir pdir); stat -c %a private pdir`},
	{"permissions", `
as() { setpriv --reuid $1 --regid $1 --clear-groups -- sh -c "$2" 2>/dev/null && echo yes || echo no; }
as 5000 "cat $A/Maildir/cur/*" | md5sum; as 5001 "ls $A"; as 5001 "touch $A/f"; echo secret >$A/secret; chown 5000:5002 $A/secret; chmod 640 $A/secret; chmod 711 $A; as 5001 "cat $A/secret"; as 5002 "cat $A/secret"; as 5002 "echo x >>$A/secret"
setpriv --reuid 5001 --regid 5001 --groups 5002 -- cat $A/secret; mkdir $A/sticky; chmod 1777 $A/sticky; as 5001 "touch $A/sticky/mine"; as 5002 "rm -f $A/sticky/mine"; as 5001 "rm $A/sticky/mine"; as 5000 "chown 5001 $A/secret"`},
	{"xattrs", `
cd $A; touch f; setfattr -n user.a -v one f; setfattr -n user.b -v 0x00ff01 f; getfattr -d -e hex f; setfattr -n user.a -v two f; getfattr --only-values -n user.a f; echo; setfattr -x user.b f; getfattr -d f; ! getfattr -n user.b f 2>/dev/null && echo gone
setfattr -n trusted.t -v t f; getfattr -n trusted.t f; mkdir d; setfattr -n user.d -v dir d; getfattr -n user.d d; head -c 3000 /dev/zero | tr '\0' v >v; setfattr -n user.big -v "$(cat v)" f; getfattr --only-values -n user.big f | md5sum; cp --preserve=all f g; getfattr -d g | md5sum; mv g h; getfattr -n user.a h`},
	{"touch and stat", `
cd $A; touch -d '1999-12-31 23:59:59.999999999' f; stat -c %y f; touch -d '2030-01-01' -a f; stat -c '%x %y' f; touch -d @0 f; stat -c %Y f; touch -d '1960-01-01' f; stat -c %Y f; touch -r Maildir/cur f; [ $(stat -c %y f) = $(stat -c %y Maildir/cur) ] 2>/dev/null || [ "$(stat -c %y f)" = "$(stat -c %y Maildir/cur)" ] && echo as reference; touch -h -d 2005-05-05 f
truncate -s 10M f; stat -c %s f; truncate -s 5 f; stat -c %s f; b=$(stat -c %Y Maildir/tmp); touch -d 2001-01-01 Maildir/tmp; touch Maildir/tmp/x; [ $(stat -c %Y Maildir/tmp) -gt 1000000000 ] && echo directory mtime moved; rm Maildir/tmp/x; stat -c %h Maildir Maildir/cur`},
	{"sparse and dd", `
cd $A; truncate -s 1T sparse; stat -c %s sparse; echo end | dd of=sparse bs=1 seek=500000000000 conv=notrunc status=none; dd if=sparse bs=1 skip=500000000000 count=4 status=none; k=$(du -k sparse | cut -f1); [ $k -lt 10000 ] && echo sparse; rm sparse
dd if=/dev/zero of=z bs=1M count=20 conv=fsync status=none; md5sum <z; fallocate -l 1M p && stat -c %s p; cp --sparse=always z z2; cmp z z2 && echo equal; printf abc | dd of=z bs=1 seek=7 conv=notrunc status=none; head -c 12 z | od -c`},
	{"editors", `
cd $A; cp Maildir/cur/0001* f; printf 'g/Received/d\n1i\nX-Edited: by ed\n.\nw\nq\n' | ed -s f; head -1 f; grep -c Received f || true; sed -i 's/X-Edited: by ed/X-Edited: by sed/' f; head -1 f; sed -i.bak -n 1p f; cat f; ls f*
perl -i -pe 's/sed/perl/' f; cat f; sort -o f f; cat f; printf 'b\na\n' >f; (echo c; cat f) >g; mv g f; cat f`},
	{"flock", `
cd $A; exec 9>lock; flock -n 9 && echo locked; ! flock -n lock true && echo held elsewhere; ! flock -n -s lock true && echo not even shared; flock -u 9; flock -n lock echo free; exec 9>&-
echo 0 >n; for i in 1 2 3 4; do (for j in $(seq 25); do flock lock sh -c 'echo $(($(cat n) + 1)) >n'; done) & done; wait; cat n`},
	{"inotifywait", `
mkdir -p $A/box/tmp $A/box/new $A/box/cur; inotifywait -q -t 20 -e create -e moved_to -e delete --format '%e %f' $A/box/new >$A/event 2>$A/err & p=$!
until grep -q inotify /proc/$p/fdinfo/* 2>/dev/null; do sleep 0.05; done; sleep 0.2; echo mail >$A/box/tmp/1; ln $A/box/tmp/1 $A/box/new/1; rm $A/box/tmp/1; wait $p; cat $A/event
inotifywait -q -t 20 -e moved_to --format '%e %f' $A/box/cur >$A/event & p=$!; until grep -q inotify /proc/$p/fdinfo/* 2>/dev/null; do sleep 0.05; done; sleep 0.2; mv $A/box/new/1 $A/box/cur/1:2,S; wait $p; cat $A/event`},
	{"rsync", `
cp -l $A/Maildir/cur/0001* $A/Maildir/new/; setfattr -n user.kept -v yes $A/Maildir/cur/0002*; touch -d 2003-03-03 $A/Maildir/new $A/Maildir/cur
sync() { rsync -aHAX --delete --itemize-changes --numeric-ids "$@" $A/Maildir/ $C/rs/; }; sync | wc -l; echo again; sync; diff -r $A/Maildir $C/rs; find $C/rs -links 2 | wc -l; getfattr --only-values -n user.kept $C/rs/cur/0002*; echo
rm $A/Maildir/cur/000[3-5]*; for f in $A/Maildir/cur/001*; do mv $f ${f%%,*},S=1:2,ST; done; echo x >>$(ls $A/Maildir/cur/0100*); touch -d 2004-04-04 $A/Maildir/cur/0100*; touch -d 2003-03-04 $A/Maildir/cur; sync | sort; echo again; sync; sync --checksum; diff -r $A/Maildir $C/rs && echo equal; rsync -a --inplace --no-whole-file $A/Maildir/ $B/in/; diff -r $A/Maildir $B/in && echo equal`},
	{"rm of an account in use", `f=$(ls $A/Maildir/cur | head -1); md5sum <$A/Maildir/cur/$f; exec 8<$A/Maildir/cur/$f 7>$A/out; rm -r $A; md5sum <&8; echo more >&7 && stat -L -c '%s %h' /dev/fd/7; mkdir $A; ls -A $A; echo new >$A/f; cat $A/f; exec 8<&- 7>&-; cat $A/f`},
	{"rm", `mkdir -p $A/d/e/f; touch $A/d/e/f/g; ! rmdir $A/d 2>/dev/null && echo not empty; rm -r $A/d; ls $A; exec 8<$A/Maildir/cur/$(ls $A/Maildir/cur | head -1); rm -r $A/Maildir; head -c 60 <&8; ls -A $A; rmdir $A && ls -A example.org`},
}

func TestShellTools(t *testing.T) {
	set := loadMail(t, 300)
	for _, tool := range tools {
		t.Run(tool.name, func(t *testing.T) {
			there, here := toolSite(t, newSite(t)), toolSite(t, &site{base: newBase(t), mail: ""})
			fill(t, there, set)
			fill(t, here, set)
			got, want := runTool(t, there, tool.script), runTool(t, here, tool.script)
			if got != want {
				t.Errorf("it prints\n%s\non the local disk\n%s\n%s", tail([]byte(got)), tail([]byte(want)), firstDifference(got, want))
			}
			if strings.TrimSpace(want) == "" {
				t.Error("the script prints nothing to compare")
			}
		})
	}
}

// toolSite makes the accounts of A, B and C; a site without a place for mail
// gets one on the local disk.
func toolSite(t *testing.T, s *site) *site {
	t.Helper()
	if s.mail == "" {
		s.mail = filepath.Join(s.base, "mail")
		mkdir(t, s.mail, 0, 0o755)
	}
	s.account(t, "example.org", "a", vmailID)
	s.account(t, "example.org", "b", vmailID)
	s.account(t, "example.net", "c", vmailID)
	return s
}

// runTool returns all that a script prints, and how it ended.
func runTool(t *testing.T, s *site, script string) string {
	t.Helper()
	cmd := command(0, "bash", "-c", "set -u\n"+script)
	cmd.Env = append(cmd.Env, "A=example.org/a", "B=example.org/b", "C=example.net/c")
	cmd.Dir = s.mail
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return fmt.Sprintf("%s(ended: %v)\n", out.String(), err)
}
