"""The part of a desktop portal that gives hotkeys, for the tests. `Press` on the test's own interface is the user."""

import dbus
import dbus.mainloop.glib
import dbus.service
from gi.repository import GLib

NAME, PATH = "org.freedesktop.portal.Desktop", "/org/freedesktop/portal/desktop"
SHORTCUTS = "org.freedesktop.portal.GlobalShortcuts"


class Request(dbus.service.Object):
    @dbus.service.signal("org.freedesktop.portal.Request", signature="ua{sv}")
    def Response(self, code, results):
        pass


class Session(dbus.service.Object):
    @dbus.service.method("org.freedesktop.portal.Session")
    def Close(self):
        pass


class Portal(dbus.service.Object):
    session = None

    def answer(self, sender, options, results):
        token = options["handle_token"]
        path = f"{PATH}/request/{sender[1:].replace('.', '_')}/{token}"
        request = Request(self.connection, path)
        GLib.timeout_add(100, lambda: request.Response(0, results) and False)
        return dbus.ObjectPath(path)

    @dbus.service.method(SHORTCUTS, in_signature="a{sv}", out_signature="o", sender_keyword="sender")
    def CreateSession(self, options, sender=None):
        path = f"{PATH}/session/{sender[1:].replace('.', '_')}/{options['session_handle_token']}"
        Session(self.connection, path)
        self.session = dbus.ObjectPath(path)
        return self.answer(sender, options, {"session_handle": dbus.String(path, variant_level=1)})

    @dbus.service.method(SHORTCUTS, in_signature="oa(sa{sv})sa{sv}", out_signature="o", sender_keyword="sender")
    def BindShortcuts(self, session, shortcuts, window, options, sender=None):
        # What the user chose in the dialog: what was proposed.
        bound = [
            (key, {"description": info["description"], "trigger_description": info["preferred_trigger"]})
            for key, info in shortcuts
        ]
        results = {"shortcuts": dbus.Array(bound, signature="(sa{sv})", variant_level=1)}
        return self.answer(sender, options, results)

    @dbus.service.signal(SHORTCUTS, signature="osta{sv}")
    def Activated(self, session, key, timestamp, options):
        pass

    @dbus.service.method(dbus.PROPERTIES_IFACE, in_signature="ss", out_signature="v")
    def Get(self, interface, name):
        return dbus.UInt32(1)

    @dbus.service.method(dbus.PROPERTIES_IFACE, in_signature="s", out_signature="a{sv}")
    def GetAll(self, interface):
        return {"version": dbus.UInt32(1)}

    @dbus.service.method("dev.sateen.Test")
    def Press(self):
        self.Activated(self.session, "clipboard", dbus.UInt64(1), dbus.Dictionary({}, signature="sv"))


dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
name = dbus.service.BusName(NAME, dbus.SessionBus())
portal = Portal(name, PATH)
GLib.MainLoop().run()
